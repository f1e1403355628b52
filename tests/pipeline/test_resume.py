"""What a resume leaves, cancels and adds. (That Slurm then does it is tested on a real one.)"""

from __future__ import annotations

from collections.abc import Collection

from arena_distill.pipeline.command_line import parse
from arena_distill.pipeline.known_tasks import KnownTask, never_starting
from arena_distill.pipeline.plan import Plan, make_plan
from arena_distill.pipeline.resume import awaited, remaining
from arena_distill.pipeline.run_record import SubmittedJob
from arena_distill.pipeline.submit import Awaited, dependencies
from arena_distill.runtime.slurm import TaskState
from arena_distill.runtime.stages import STAGES

STEP = {stage.number: stage.name for stage in STAGES.values()}


def planned(*argv: str) -> Plan:
    return make_plan(parse(["--profile", "tiny", "--n-folds", "3", *argv]))


def job(job_id: str, number: int, tasks: list[int] | None, *depends: str) -> SubmittedJob:
    return SubmittedJob("", STEP[number], job_id, tasks, "fold" if tasks else None, list(depends), [], "logs/%x_%j.out")


def known(of: SubmittedJob, **states: str) -> list[KnownTask]:
    """Tasks of a job by number, as t0="PENDING"; a job that is no array: t="RUNNING"."""
    return [
        KnownTask(of, TaskState(of.job_id, int(name[1:]) if name[1:] else None, state, "", None, "", 0, "", ""))
        for name, state in states.items()
    ]


def left_to_do(plan: Plan, missing: dict[int, Collection[int | None]], left: Collection[tuple[str, int | None]] = ()):  # type: ignore[no-untyped-def]
    rest = remaining(plan, left, lambda one: missing.get(one.stage.number, ()))
    return {one.stage.number: one.tasks for one in rest.stages}


def test_what_is_not_complete_and_all_that_waits_for_it() -> None:
    plan = planned()
    one = (None,)
    after_5 = {6: one, 7: one, 8: one, 9: one}
    assert left_to_do(plan, {}) == {}
    assert left_to_do(plan, {3: [1]}) == {3: (1,), 4: (1,), 5: (0, 1, 2), **after_5}
    assert left_to_do(plan, {5: [2]}) == {5: (2,), **after_5}
    assert left_to_do(plan, {2: one}) == {2: one, 3: (0, 1, 2), 4: (0, 1, 2), 5: (0, 1, 2), **after_5}
    assert left_to_do(plan, {9: one}) == {9: one}


def test_what_is_queued_or_running_is_not_done_again() -> None:
    missing: dict[int, Collection[int | None]] = {5: [0, 2], 6: [None]}
    running = [(STEP[5], 0)]
    assert left_to_do(planned("--to", "6"), missing, running) == {5: (2,), 6: (None,)}
    assert left_to_do(planned("--to", "6"), {5: [0], 6: [None]}, [*running, (STEP[6], None)]) == {}


def test_tasks_pair_only_where_both_arrays_hold_the_same() -> None:
    plan = planned()
    step4 = plan[STEP[4]]

    def words(*jobs: Awaited) -> list[str]:
        return dependencies(step4, {STEP[3]: jobs})

    assert words(Awaited("7", (0, 1, 2), True)) == ["aftercorr:7"]
    assert words(Awaited("7", (0, 1), True)) == ["afterok:7"]
    assert words(Awaited("7", (0, 1), False), Awaited("9", (2,), True)) == ["afterok:7_0:7_1:9"]
    assert dependencies(plan[STEP[5]], {STEP[4]: [Awaited("7", (0, 1), False)]}) == ["afterok:7_0:7_1"]
    assert dependencies(plan[STEP[3]], {STEP[1]: [Awaited("4", (None,), True)]}) == ["afterok:4"]
    assert dependencies(plan[STEP[3]], {}) == []


def test_a_failed_task_of_an_array_is_not_waited_for() -> None:
    array = job("7", 5, [0, 1, 2])
    active = [one for one in known(array, t0="RUNNING", t1="FAILED", t2="PENDING") if one.is_active]
    assert awaited(active) == {STEP[5]: [Awaited("7", (0, 2), False)]}


def test_what_waits_for_a_failure_waits_in_vain_and_so_does_what_waits_for_that() -> None:
    tasks = [
        *known(job("7", 3, [0, 1]), t0="COMPLETED", t1="FAILED"),
        *known(job("8", 4, [0, 1], "aftercorr:7"), t0="RUNNING", t1="PENDING"),
        *known(job("9", 5, [0, 1], "afterok:8"), t0="PENDING", t1="PENDING"),
        *known(job("10", 6, None, "afterok:9"), t="PENDING"),
        *known(job("11", 9, None), t="PENDING"),
    ]
    assert never_starting(tasks) == {("8", 1), ("9", 0), ("9", 1), ("10", None)}


def test_what_waits_for_single_tasks_does_not_mind_the_others() -> None:
    failed = known(job("7", 3, [0, 1, 2]), t0="COMPLETED", t1="CANCELLED", t2="RUNNING")
    new = known(job("12", 4, [0, 2], "afterok:7_0:7_2"), t0="PENDING", t2="PENDING")
    assert never_starting([*failed, *new]) == set()
    assert never_starting([*failed, *known(job("13", 5, [0], "afterok:7_1"), t0="PENDING")]) == {("13", 0)}
