"""``./pipeline.sh --slurm``: steps 1 to 9 on the cluster, arrays over folds, to the bytes of the local run."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import numpy as np
import pytest

from arena_distill.data.loading import load_test
from arena_distill.evaluation.submission import read_submission
from arena_distill.runtime.stages import STAGES
from tests.slurm.cluster import Cluster, Done
from tests.slurm.workplace import N_FOLDS, RUN, Workplace

TASKS = 1 + 1 + 3 * N_FOLDS + 4
"""Steps 1 and 2, three steps that fan out over folds, and steps 6 to 9."""


@dataclass(frozen=True)
class Submitted:
    """A chain that was submitted by two users at once, and has ended."""

    place: Workplace
    cluster: Cluster
    answers: tuple[Done, Done]
    while_it_ran: Done
    job_ids: set[str]  # of all jobs that there were since the two began


@pytest.fixture(scope="module")
def chain(fresh: Workplace, _cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    place = fresh.copy(tmp_path_factory.mktemp("chain") / "repository", _cluster)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    before = {job.shown["JobId"] for job in _cluster.jobs()}  # other tests use the same cluster
    both = [
        subprocess.Popen(
            [str(place.root / "pipeline.sh"), "--slurm"],
            cwd=elsewhere,
            env=place.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    answers = [subprocess.CompletedProcess("", p.returncode, *out) for p, out in [(p, p.communicate()) for p in both]]
    again = place.pipeline("--slurm")
    _cluster.wait(seconds=900)
    job_ids = {job.shown["JobId"] for job in _cluster.jobs()} - before
    return Submitted(place, _cluster, (answers[0], answers[1]), again, job_ids)


@pytest.mark.slow
def test_the_chain_ends_with_the_submission_of_the_local_run(chain: Submitted, undisturbed: Workplace) -> None:
    assert chain.place.submission.is_file(), chain.cluster.shown() + chain.place.logs()
    assert chain.place.submission.read_bytes() == undisturbed.submission.read_bytes()
    ids = load_test(chain.place.root / "data" / "small" / "test.csv").rows["id"].to_pylist()
    probabilities = read_submission(chain.place.submission, ids)[1]
    assert np.ptp(probabilities, axis=0).min() > 1e-5, "equal rows would show nothing"
    assert (chain.place.models / "report.html").is_file()
    assert (chain.place.root / "sub" / f"{RUN}_evaluation.json").is_file()


@pytest.mark.slow
def test_every_task_was_a_job_and_is_complete(chain: Submitted) -> None:
    jobs = [job for one in chain.place.submitted() for job in chain.cluster.jobs(one["job_id"])]
    assert [job.state for job in jobs] == ["COMPLETED"] * TASKS, chain.cluster.shown()
    assert [job.restarts for job in jobs] == [0] * TASKS
    arrays = {one["stage"]: one["tasks"] for one in chain.place.submitted() if one["tasks"] is not None}
    assert arrays == {name: list(range(N_FOLDS)) for name, stage in STAGES.items() if "fold" in stage.fans_out}
    status = chain.place.status()
    assert {line["state"] for line in status.values()} == {"done"}
    assert {line["artifact"]["state"] for line in status.values()} == {"complete"}


@pytest.mark.slow
def test_of_two_who_submit_the_same_run_at_once_one_is_refused(chain: Submitted) -> None:
    assert sorted(done.returncode == 0 for done in chain.answers) == [False, True], chain.answers
    refused = next(done for done in chain.answers if done.returncode)
    for done in (refused, chain.while_it_ran):
        assert done.returncode != 0
        assert f"./pipeline.sh status {RUN}" in done.stderr and f"./pipeline.sh cancel {RUN}" in done.stderr
    assert [job["stage"] for job in chain.place.submitted()] == list(STAGES)
    ours = chain.cluster.jobs(*(job["job_id"] for job in chain.place.submitted()))
    assert {job.shown["JobId"] for job in ours} == chain.job_ids


@pytest.mark.slow
def test_resuming_what_is_complete_submits_nothing(chain: Submitted) -> None:
    before = chain.place.submitted()
    done = chain.place.pipeline("resume", RUN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert chain.place.submitted() == before


@pytest.mark.slow
def test_logs_are_where_the_headers_say(chain: Submitted) -> None:
    for one in chain.place.submitted():
        stage = STAGES[one["stage"]]
        for task in one["tasks"] or [None]:
            suffix, part = ("", "") if task is None else (f"_{task}", f"_fold_{task}")
            log = chain.place.root / "logs" / f"{RUN}-{stage.job_name}_{one['job_id']}{suffix}.out"
            assert f"{stage.name}{part}: done in" in log.read_text("utf-8")
