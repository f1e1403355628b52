"""The chain on this machine: every task as soon as what it waits for is done and there are cores for it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from arena_distill.pipeline.local_process import LocalProcess
from arena_distill.pipeline.machine import Machine
from arena_distill.pipeline.plan import Plan, StagePlan
from arena_distill.pipeline.run_record import LocalTask, RunRecord, now
from arena_distill.pipeline.variables import for_stages, repository
from arena_distill.runtime import heartbeat
from arena_distill.runtime.errors import EXIT_REQUEUE

MAX_STARTS = 4  # of a task that ends with 75: something outside stops it again and again
_POLL_SECONDS = 0.1

Key = tuple[str, int | None]


@dataclass
class Task:
    """One task of one stage, and how it is getting on."""

    plan: StagePlan
    number: int | None
    waits_for: frozenset[Key]
    starts: int = 0
    process: LocalProcess | None = None
    record: LocalTask | None = None
    exit_code: int | None = None  # of the last start; None: not ended yet

    @property
    def key(self) -> Key:
        """Stage and number."""
        return self.plan.stage.name, self.number

    @property
    def name(self) -> str:
        """For people: step3 fold 2."""
        step = f"step{self.plan.stage.number}"
        return step if self.number is None else f"{step} {self.plan.array} {self.number}"


@dataclass
class _Signals:
    """Which signal asked us to end, if any, and how often."""

    received: list[int] = field(default_factory=list)

    @contextmanager
    def caught(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)


def run_locally(plan: Plan, record: RunRecord, logs: Path, machine: Machine) -> int:
    """Run every task of a plan. To be called under the record's lock.

    Args:
        plan: what to run; tasks whose stage is left out of it are taken as done.
        record: notes each start and end.
        logs: directory of the tasks' output.
        machine: cores, GPUs, and how many at once.

    Returns:
        0, or the exit code of the first task that failed; 130 after Ctrl-C, 75 after SIGTERM or SIGUSR1.
    """
    tasks = tasks_of(plan)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    signals = _Signals()
    asked, saved_before, began = 0, _saved(record), time.monotonic()
    with signals.caught(), _ended_with_us(tasks):
        while True:
            running = _running(tasks)
            if len(signals.received) > asked:
                asked = len(signals.received)
                _end(running, at_once=asked > 1)
            for task in running:
                _look_after(task, record, alone=len(running) == 1, ending=bool(signals.received))
            if not signals.received:
                _start_what_can(tasks, record, logs, stamp, machine)
            if not _running(tasks):
                break
            time.sleep(_POLL_SECONDS)
    # For the job that this may be a part of: it is worth starting again as long as something is saved every time.
    heartbeat.keep(_saved(record) - saved_before + sum(task.exit_code == 0 for task in tasks.values()))
    heartbeat.flush()
    code = _conclude(tasks, record, signals.received)
    if code == 0:
        print(f"all {len(tasks)} tasks done in {time.monotonic() - began:.0f} s", flush=True)
    return code


def tasks_of(plan: Plan) -> dict[Key, Task]:
    """Every task of a plan, in the order of the stages, with the tasks of the plan that it waits for."""
    numbers = {one.stage.name: one.tasks for one in plan.stages}
    tasks: dict[Key, Task] = {}
    for one in plan.stages:
        for number in one.tasks:
            waits = {
                (dependency.stage, other)
                for dependency in one.depends
                for other in numbers.get(dependency.stage, ())
                if not dependency.paired or other == number
            }
            task = Task(one, number, frozenset(waits))
            tasks[task.key] = task
    return tasks


def _running(tasks: Mapping[Key, Task]) -> list[Task]:
    return [task for task in tasks.values() if task.process is not None]


@contextmanager
def _ended_with_us(tasks: Mapping[Key, Task]) -> Iterator[None]:
    """If we fail ourselves (a full disk, a closed terminal), nothing goes on unwatched."""
    try:
        yield
    finally:
        for task in _running(tasks):
            assert task.process is not None
            task.process.ask_to_end()


def has_room(machine: Machine, task: Task, running: list[Task]) -> bool:
    """Whether a task may start beside those that run."""
    if machine.jobs:
        return len(running) < machine.jobs
    if machine.gpus and task.plan.stage.gpu and any(other.plan.stage.gpu for other in running):
        return False  # each takes all GPUs, and would find their memory taken
    return sum(min(one.plan.threads, machine.cores) for one in (*running, task)) <= machine.cores


def _start_what_can(tasks: Mapping[Key, Task], record: RunRecord, logs: Path, stamp: str, machine: Machine) -> None:
    for task in tasks.values():
        running = _running(tasks)
        waiting = task.process is None and task.exit_code is None
        if waiting and all(tasks[key].exit_code == 0 for key in task.waits_for) and has_room(machine, task, running):
            _start(task, record, logs, stamp)


def _start(task: Task, record: RunRecord, logs: Path, stamp: str) -> None:
    stage = task.plan.stage
    number = "" if task.number is None else f"_{task.number}"
    log = logs / f"{record.name}{'-' if record.name else ''}{stage.job_name}_{stamp}{number}.out"
    environment = for_stages(os.environ) | task.plan.environment_of_task(task.number)
    environment[stage.cpus_variable] = str(task.plan.threads)
    task.process = LocalProcess(["bash", stage.script], repository(), environment, log)
    task.starts += 1
    task.record = LocalTask(
        stage=stage.name,
        task=task.number,
        array=task.plan.array,
        started=now(),
        ended=None,
        pid=task.process.pid,
        node=task.process.node,
        exit_code=None,
        log=str(log),
    )
    record.add_local(task.record)


def _look_after(task: Task, record: RunRecord, *, alone: bool, ending: bool) -> None:
    process = task.process
    assert process is not None and task.record is not None
    code = process.exit_code()
    prefix = "" if alone and task.number is None else f"[{task.name}] "
    process.follow(lambda line: print(prefix + line, flush=True), to_the_end=code is not None)
    if code is None:
        return
    ended = LocalTask(**{**vars(task.record), "ended": now(), "exit_code": code})
    record.add_local(ended)
    task.process = None
    if code == EXIT_REQUEUE and task.starts < MAX_STARTS:
        print(f"[{task.name}] checkpointed{'' if ending else '; it goes on'}", flush=True)
        return
    task.exit_code = code
    task.record = ended
    if code:
        print(f"[{task.name}] failed with exit code {code}; its log: {ended.log}", flush=True)


def _end(running: list[Task], *, at_once: bool) -> None:
    if running and not at_once:
        print(
            f"ending {', '.join(task.name for task in running)}: each saves where it is, and goes on from there next "
            "time (Ctrl-C again: at once)",
            flush=True,
        )
    for task in running:
        assert task.process is not None
        if at_once:
            task.process.kill()
        else:
            task.process.ask_to_end()


def _conclude(tasks: Mapping[Key, Task], record: RunRecord, received: list[int]) -> int:
    failed = [task for task in tasks.values() if task.exit_code not in (None, 0)]
    missing = [task for task in tasks.values() if task.exit_code is None]
    again = f"./pipeline.sh resume {record.name}".rstrip()
    if received and (failed or missing):
        print(f"interrupted -> {again} goes on with what is not complete", flush=True)
        return 130 if signal.SIGINT in received else EXIT_REQUEUE
    if not failed:
        return 0
    for task in failed:
        assert task.record is not None
        print(f"\n{task.name} failed with exit code {task.exit_code}: {reason(Path(task.record.log), task.exit_code)}")
        print(f"  its log: {task.record.log}")
    if missing:
        counts = Counter(f"step{task.plan.stage.number}" for task in missing)
        print(f"not started, as they wait for it: {', '.join(f'{s} ({n})' if n > 1 else s for s, n in counts.items())}")
    print(f"-> mend that, then: {again}   (what is finished stays)", flush=True)
    return int(failed[0].exit_code or 1)


def _saved(record: RunRecord) -> int:
    """How much all tasks have saved so far, by their heartbeats."""
    total, own = 0, os.environ.get(heartbeat.HEARTBEAT_FILE, "")
    for file in record.progress_directory.glob("[!.]*.json"):
        if own and file.name == Path(own).name:
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):
            total += int(json.loads(file.read_text("utf-8"))["saved"])
    return total


def reason(log: Path, code: int | None) -> str:
    """Why a task failed, as its log says."""
    try:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith("error:")]
    if errors:
        return errors[-1].removeprefix("error:").strip()
    if code == 137:
        return "it was killed; the machine may have run out of memory -> fewer at once (--jobs 1), smaller batches"
    said = [line for line in lines if "stopped with exit code" not in line]
    return said[-1].strip() if said else "it said nothing"
