"""Where a run stands: by its records, logs and heartbeats alone, and with what a ``scontrol`` says.

The records, logs and heartbeats are written as the pipeline, its scripts and their workers write them. The ``scontrol``
here is a script that prints what Slurm 22.05 printed; the real one is asked in ``tests/slurm``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from arena_distill.pipeline.run_record import LocalTask, RunRecord, RunSettingsRecord, SubmittedJob
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.status import RunStatus, run_status, show_status
from arena_distill.pipeline.task_logs import LogEnd, read_end
from arena_distill.pipeline.task_status import TaskStatus
from arena_distill.runtime import heartbeat
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.stages import STAGES

POST, FOLDS, TEACHERS, LOGITS, STUDENTS, AVERAGE, QUANTIZE, PREDICT, EVAL = STAGES
HERE = socket.gethostname()


@pytest.fixture
def record(tmp_path: Path, small_train_csv: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """A run of two folds that was told everything and has done nothing; its scripts run in ``tmp_path``."""
    monkeypatch.setenv("REPO_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    command(tmp_path, "sbatch", "exit 1")
    command(tmp_path, "scontrol", "exit 1")  # no controller answers
    (tmp_path / "logs").mkdir()
    run = RunRecord(tmp_path / "out" / "model_save" / "x")
    told = {"TRAIN_CSV": str(small_train_csv), "N_FOLDS": "2", "EXTRA_DATA": "none", "SKIP_QWEN": "1"}
    run.write_settings(
        RunSettingsRecord(
            run="x", began="2026-11-22T20:00:00+0000", slurm=True, stages=list(STAGES), folds=[0, 1], variables=told,
            profile="", profile_sha256="", profile_entries={}, threads={}, git_revision=None, seed=42,
        )
    )  # fmt: skip
    return run


def command(directory: Path, name: str, script: str) -> None:
    path = directory / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n", "utf-8")
    path.chmod(0o755)


def settings(record: RunRecord) -> PipelineSettings:
    return PipelineSettings(output_dir=record.model_save.parents[1], run="x")


def status(record: RunRecord) -> tuple[RunStatus, dict[tuple[str, int | None], TaskStatus]]:
    """The run, and its lines by stage and task."""
    found = run_status(settings(record))
    return found, {(line.stage, line.task): line for line in found.tasks if line.array != "table"}


def submitted(record: RunRecord, stage: str, job_id: str, tasks: list[int] | None, *depends: str) -> SubmittedJob:
    name = f"x-{STAGES[stage].job_name}"
    job = SubmittedJob(
        submitted="2026-11-22T21:28:06+0000",
        stage=stage,
        job_id=job_id,
        tasks=tasks,
        array=None if tasks is None else "fold",
        depends=list(depends),
        command=["sbatch", "--parsable", f"--job-name={name}", f"{stage}.sh"],
        log="logs/%x_%j.out" if tasks is None else "logs/%x_%A_%a.out",
    )
    record.add(job)
    return job


def log(directory: Path, name: str, *lines: str) -> Path:
    path = directory / "logs" / name
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


BEGIN = "2026-11-22 21:28:07 teachers: on n1, job 26, 4 cores"
DONE = "2026-11-22 21:28:20 teachers: done in 13 s"
STOPPED = "2026-11-22 21:28:20 teachers: stopped with exit code 3 after 13 s"
REQUEUED = "2026-11-22 21:28:20 teachers: stopped before the end, with exit code 75 after 13 s"
GOES_ON = "2026-11-22 21:28:20 teachers: requeued as 26_1: it goes on from what is saved"
ERROR = "error: data/x.csv: no such file -> put it there"


# Logs


@pytest.mark.parametrize(
    ("lines", "end"),
    [
        ([BEGIN, DONE], LogEnd(0, "")),
        ([BEGIN, "error: an earlier one", ERROR, STOPPED], LogEnd(3, ERROR.removeprefix("error: "))),
        ([BEGIN, "half a line"], LogEnd(None, "")),
        ([BEGIN, ERROR, STOPPED, BEGIN, "working"], LogEnd(None, "")),  # requeued, and killed then
        ([BEGIN, REQUEUED, GOES_ON], LogEnd(75, "")),
        ([BEGIN, ERROR, REQUEUED, GOES_ON, BEGIN, DONE], LogEnd(0, "")),
        ([BEGIN, ERROR, REQUEUED, BEGIN, STOPPED], LogEnd(3, "")),  # the error was of the attempt before
        (
            [BEGIN, "slurmstepd: error: *** JOB 26 ON n1 CANCELLED AT 2026-11-22T21:31:11 DUE TO TIME LIMIT ***"],
            LogEnd(None, "JOB 26 ON n1 CANCELLED AT 2026-11-22T21:31:11 DUE TO TIME LIMIT"),
        ),
        (
            [BEGIN, "Traceback (most recent call last):", '  File "x.py"', "torch.OutOfMemoryError: CUDA", STOPPED],
            LogEnd(3, "torch.OutOfMemoryError: CUDA"),
        ),
    ],
)
def test_the_end_of_a_log_is_that_of_its_last_attempt(tmp_path: Path, lines: list[str], end: LogEnd) -> None:
    (tmp_path / "logs").mkdir()
    assert read_end(log(tmp_path, "a.out", *lines)) == end


def test_no_log_is_no_end(tmp_path: Path) -> None:
    assert read_end(tmp_path / "none.out") is None


# Without Slurm


def test_a_run_that_only_began_is_not_run(record: RunRecord) -> None:
    found, lines = status(record)
    assert {line.state for line in found.tasks} == {"not run"}
    assert {task for stage, task in lines if stage == TEACHERS} == {0, 1}
    assert found.next == (
        "not complete (step 1, step 2, step 3 fold 0, step 3 fold 1 and 9 more): `./pipeline.sh resume x` goes on"
    )


def test_outputs_alone_say_what_is_done(
    record: RunRecord, small_train_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from arena_distill.data.fold_settings import FoldSettings
    from arena_distill.data.fold_stage import run

    run(FoldSettings(output_dir=record.model_save.parents[1], run="x", train_csv=str(small_train_csv), n_folds=2))
    found, lines = status(record)
    assert lines[FOLDS, None].state == "done" and lines[FOLDS, None].artifact.state == "complete"
    assert [line.stage for line in found.tasks if line.state == "done"] == [FOLDS]
    (record.directory / "run.json").unlink()  # a run whose stages were called by hand
    capsys.readouterr()
    assert show_status(settings(record)) == 0
    printed = capsys.readouterr().out
    assert "step2_make_folds" in printed and "-> not complete" in printed and "`RUN=x ./pipeline.sh` goes on" in printed


def test_a_run_that_is_not_there_is_an_error_that_names_those_that_are(record: RunRecord) -> None:
    nothing = PipelineSettings(output_dir=record.model_save.parents[1], run="y")
    with pytest.raises(InputError, match="nothing of this run is there -> runs that are: x"):
        run_status(nothing)


def local(stage: str, task: int | None, path: Path, **fields: object) -> LocalTask:
    began = LocalTask(
        stage=stage, task=task, array="fold" if task is not None else None, started="2026-11-22T21:28:06+0000",
        ended="2026-11-22T21:28:20+0000", pid=1, node=HERE, exit_code=0, log=str(path),
    )  # fmt: skip
    return replace(began, **fields)  # type: ignore[arg-type]


def test_local_tasks_say_how_they_ended(record: RunRecord, tmp_path: Path) -> None:
    failed = log(tmp_path, "x-teachers_1.out", BEGIN, ERROR, STOPPED)
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        gone = subprocess.Popen(["true"])
        gone.wait()
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - 100))
        for task in (
            local(POST, None, log(tmp_path, "x-post.out", BEGIN, DONE)),
            local(FOLDS, None, log(tmp_path, "x-folds.out", BEGIN, REQUEUED), exit_code=75),
            local(TEACHERS, 0, tmp_path / "none", started=started, ended=None, exit_code=None, pid=sleeper.pid),
            local(TEACHERS, 1, failed, exit_code=3),
            local(LOGITS, 0, log(tmp_path, "x-oof_0.out", BEGIN), ended=None, exit_code=None, pid=gone.pid),
        ):
            record.add_local(task)
        found, lines = status(record)
        sleeper.kill()
    assert lines[POST, None].state == "incomplete"  # it says that it ended well, and there is nothing
    assert lines[FOLDS, None].state == "interrupted"
    assert lines[TEACHERS, 0].state == "running" and 99 <= (lines[TEACHERS, 0].elapsed_seconds or 0) < 160
    assert lines[TEACHERS, 1].state == "failed" and lines[TEACHERS, 1].elapsed_seconds == 14
    assert lines[TEACHERS, 1].reason == "exit code 3: data/x.csv: no such file -> put it there"
    assert lines[TEACHERS, 1].log == str(failed)
    assert lines[LOGITS, 0].state == "interrupted" and "is gone" in lines[LOGITS, 0].reason
    assert lines[LOGITS, 1].state == "not run"
    assert "resume x` (what still runs may go on)" in found.next


def test_jobs_that_slurm_has_forgotten_are_told_by_their_logs(record: RunRecord, tmp_path: Path) -> None:
    submitted(record, POST, "25", None)
    submitted(record, TEACHERS, "26", [0, 1], "afterok:25")
    submitted(record, LOGITS, "27", [0, 1], "aftercorr:26")
    log(tmp_path, "x-post-pretrain_25.out", BEGIN, DONE)
    log(tmp_path, "x-teachers_26_0.out", BEGIN, REQUEUED)
    log(tmp_path, "x-teachers_26_1.out", BEGIN, ERROR, STOPPED)
    log(tmp_path, "x-oof_27_0.out", BEGIN, "scoring")
    found, lines = status(record)
    assert "Slurm does not answer" in found.slurm
    said = {key: (line.state, line.reason, line.job) for key, line in lines.items() if line.job}
    assert said == {
        (POST, None): ("incomplete", "ended without an error, and its output is not complete", "25"),
        (TEACHERS, 0): ("interrupted", "saved where it is, and Slurm has forgotten it", "26_0"),
        (TEACHERS, 1): ("failed", "exit code 3: data/x.csv: no such file -> put it there", "26_1"),
        (LOGITS, 0): ("interrupted", "Slurm has forgotten it, and its log ends in the middle", "27_0"),
        (LOGITS, 1): ("unknown", "Slurm has forgotten it, and it left no log: it may never have started", "27_1"),
    }
    assert lines[TEACHERS, 1].log == str(tmp_path / "logs" / "x-teachers_26_1.out")
    assert found.next.startswith("step 1, step 3 fold 0, step 3 fold 1, step 4 fold 0 incomplete: mend")


def test_the_later_of_a_job_and_a_local_task_counts(record: RunRecord, tmp_path: Path) -> None:
    submitted(record, TEACHERS, "26", [0, 1])
    log(tmp_path, "x-teachers_26_0.out", BEGIN, ERROR, STOPPED)
    later = {"started": "2026-11-22T22:00:00+0000", "ended": "2026-11-22T22:00:09+0000", "exit_code": 1}
    record.add_local(local(TEACHERS, 0, log(tmp_path, "l.out", BEGIN, STOPPED), **later))
    assert status(record)[1][TEACHERS, 0].log == str(tmp_path / "logs" / "l.out")
    job = submitted(record, TEACHERS, "31", [0])
    assert status(record)[1][TEACHERS, 0].log == str(tmp_path / "logs" / "l.out")  # submitted before that
    record.add(replace(job, job_id="32", submitted="2026-11-22T22:30:00+0000"))
    assert status(record)[1][TEACHERS, 0].job == "32_0"


# With what Slurm says

FIELDS = (
    "JobId={raw} {array}JobName=x-{name} UserId=root(0) JobState={state} Reason={reason} Dependency={dependency} "
    "Requeue=1 Restarts={restarts} ExitCode={code} RunTime=00:01:40 StartTime={start} EndTime=Unknown NodeList=n1 "
    "Command=/r/x.sh StdOut={log} Power= "
)


def slurm_says(directory: Path, *tasks: dict[str, str]) -> None:
    """A ``scontrol`` that knows these tasks."""
    by_job: dict[str, list[str]] = {}
    for task in tasks:
        job, _, number = task["id"].partition("_")
        name = STAGES[task["stage"]].job_name
        known = {
            "raw": job, "array": f"ArrayJobId={job} ArrayTaskId={number} " if number else "", "name": name,
            "reason": "None", "dependency": "(null)", "restarts": "0", "code": "0:0", "start": "2026-11-22T21:28:06",
            "log": f"{directory}/logs/x-{name}_{task['id']}.out",
        }  # fmt: skip
        by_job.setdefault(job, []).append(FIELDS.format(**(known | task)))
    cases = "\n".join(f"{job}) cat <<'END'\n" + "\n".join(lines) + "\nEND\n;;" for job, lines in by_job.items())
    unknown = "*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1 ;;"
    command(directory, "scontrol", f'[ "$1" != ping ] || exit 0\ncase "$4" in\n{cases}\n{unknown}\nesac')


def test_a_failing_fold_and_those_that_waited_for_it(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(record, TEACHERS, "26", [0, 1])
    submitted(record, LOGITS, "27", [0, 1], "aftercorr:26")
    submitted(record, STUDENTS, "28", [0, 1], "afterok:27")
    submitted(record, AVERAGE, "29", None, "afterok:28")
    log(tmp_path, "x-teachers_26_1.out", BEGIN, ERROR, STOPPED)
    log(tmp_path, "x-teachers_26_0.out", BEGIN)
    never = {"state": "CANCELLED", "reason": "DependencyNeverSatisfied", "start": "Unknown"}
    slurm_says(
        tmp_path,
        {"id": "26_0", "stage": TEACHERS, "state": "RUNNING", "restarts": "2"},
        {"id": "26_1", "stage": TEACHERS, "state": "FAILED", "reason": "NonZeroExitCode", "code": "3:0"},
        {"id": "27_0", "stage": LOGITS, "state": "PENDING", "reason": "Dependency", "start": "Unknown"},
        {"id": "27_1", "stage": LOGITS, **never},
        {"id": "28_0", "stage": STUDENTS, "state": "PENDING", "reason": "DependencyNeverSatisfied", "start": "Unknown"},
        {"id": "28_1", "stage": STUDENTS, **never},
        {"id": "29", "stage": AVERAGE, "state": "PENDING", "reason": "Dependency", "start": "Unknown"},
    )
    found, lines = status(record)
    assert found.slurm == "4 queued or running in Slurm"
    assert (lines[TEACHERS, 0].state, lines[TEACHERS, 0].restarts) == ("running", 2)
    assert lines[TEACHERS, 0].elapsed_seconds == 100
    assert lines[TEACHERS, 1].reason == "exit code 3: data/x.csv: no such file -> put it there"
    assert lines[LOGITS, 0].reason == "waits for step 3 fold 0 (running)"
    assert (lines[LOGITS, 1].state, lines[LOGITS, 1].reason) == ("cancelled", "it waited for step 3 fold 1 (failed)")
    assert lines[STUDENTS, 0].reason == "waits in vain for step 4 fold 1 (cancelled)"
    assert lines[STUDENTS, 1].reason == "it waited for step 4 fold 1 (cancelled)"
    assert lines[AVERAGE, None].state == "pending"
    assert found.next == (
        "step 3 fold 1 failed: mend what its line says, then `./pipeline.sh resume x` (what still runs may go on)"
    )
    show_status(settings(record))
    printed = capsys.readouterr().out.splitlines()
    row = next(number for number, line in enumerate(printed) if "fold 1" in line and "failed" in line)
    assert "logs/x-teachers_26_1.out" in printed[row]
    assert printed[row + 1] == "    exit code 3: data/x.csv: no such file -> put it there"
    assert any("running (2 requeues)" in line for line in printed)


@pytest.mark.parametrize(
    ("slurm", "state", "reason"),
    [
        ({"state": "TIMEOUT", "reason": "TimeLimit"}, "timed out", ""),
        ({"state": "OUT_OF_MEMORY", "reason": "OutOfMemory", "code": "0:125"}, "out of memory", ""),
        ({"state": "NODE_FAIL"}, "node failed", ""),
        ({"state": "PREEMPTED"}, "preempted", ""),
        ({"state": "CANCELLED"}, "cancelled", ""),
        ({"state": "FAILED", "code": "0:9"}, "failed", "killed by signal 9"),
        ({"state": "FAILED", "code": "75:0"}, "interrupted", "saved where it is, and was not requeued any more"),
        ({"state": "COMPLETED"}, "incomplete", "ended without an error, and its output is not complete"),
        ({"state": "COMPLETING"}, "running", ""),
        ({"state": "PENDING", "reason": "BeginTime"}, "pending", "BeginTime"),
        ({"state": "REQUEUE_HOLD", "reason": "JobHeldUser"}, "pending", "JobHeldUser"),
        ({"state": "SUSPENDED"}, "suspended", "SUSPENDED"),
    ],
)
def test_states_of_slurm_in_words(
    record: RunRecord, tmp_path: Path, slurm: dict[str, str], state: str, reason: str
) -> None:
    submitted(record, POST, "25", None)
    slurm_says(tmp_path, {"id": "25", "stage": POST, **slurm})
    line = status(record)[1][POST, None]
    assert (line.state, line.reason, line.slurm_state) == (state, reason, slurm["state"])


@pytest.mark.parametrize(
    ("slurm", "step"),
    [
        ({"state": "RUNNING"}, "wait, and ask again; `./pipeline.sh cancel x` ends it"),
        ({"state": "PENDING", "reason": "Priority"}, "wait, and ask again; `./pipeline.sh cancel x` ends it"),
        (
            {"state": "PENDING", "reason": "JobHeldAdmin"},
            "step 1 held: `scontrol release 25` lets it go, `./pipeline.sh cancel x` ends the run",
        ),
        (
            {"state": "PENDING", "reason": "PartitionTimeLimit"},
            "step 1 will not start (PartitionTimeLimit): `./pipeline.sh cancel x`, change SBATCH_TIMELIMIT, then "
            "`./pipeline.sh resume x`",
        ),
        ({"state": "PENDING", "reason": "DependencyNeverSatisfied"}, "step 1 wait in vain: `./pipeline.sh resume x`"),
        ({"state": "TIMEOUT"}, "step 1 timed out: mend what its line says, then `./pipeline.sh resume x`"),
        ({"state": "CANCELLED"}, "not complete (step 1, step 2"),
    ],
)
def test_the_last_line_says_what_to_do(record: RunRecord, tmp_path: Path, slurm: dict[str, str], step: str) -> None:
    submitted(record, POST, "25", None)
    slurm_says(tmp_path, {"id": "25", "stage": POST, **slurm})
    assert status(record)[0].next.startswith(step)


def test_a_heartbeat_shows_how_far_a_running_task_is_and_that_it_went_silent(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(record, TEACHERS, "26", [0, 1])
    slurm_says(
        tmp_path,
        {"id": "26_0", "stage": TEACHERS, "state": "RUNNING"},
        {"id": "26_1", "stage": TEACHERS, "state": "RUNNING"},
    )
    file = record.progress_directory / f"{TEACHERS}_fold_0.json"
    monkeypatch.setenv("HEARTBEAT_FILE", str(file))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "26")
    heartbeat.beat(
        "train", 240, 1000, "steps", started=time.time() - 100, rows_per_second=38.4, tokens_per_second=1e4,
        seconds_left=300.0,
    )  # fmt: skip
    heartbeat.flush()
    found, lines = status(record)
    beat = lines[TEACHERS, 0].progress
    assert beat is not None and (beat.done, beat.total, beat.unit) == (240, 1000, "steps")
    assert beat.seconds_left is not None and 280 < beat.seconds_left <= 300 and not beat.silent
    assert lines[TEACHERS, 1].progress is None
    show_status(settings(record))
    assert "240/1,000 steps, 38.4 rows/s, 0:0" in capsys.readouterr().out

    said = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(said | {"updated": time.time() - 3000}), "utf-8")
    assert status(record)[1][TEACHERS, 0].progress is None  # older than the attempt, which runs for 100 s
    slurm_says(tmp_path, {"id": "26_0", "stage": TEACHERS, "state": "RUNNING", "start": "2026-11-22T20:00:00"})
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(scontrol.read_text("utf-8").replace("RunTime=00:01:40", "RunTime=01:30:00"), "utf-8")
    found, lines = status(record)
    beat = lines[TEACHERS, 0].progress
    assert beat is not None and beat.silent
    assert found.next == (
        "step 3 fold 0 has given no sign for 50 min: look at its log; `scontrol requeue 26_0` starts it again from its "
        "last checkpoint"
    )
    show_status(settings(record))
    assert "240/1,000 steps, no sign for 0:50:0" in capsys.readouterr().out
    file.write_text(json.dumps(said | {"job_id": "25"}), "utf-8")
    assert status(record)[1][TEACHERS, 0].progress is None  # of an earlier job
    file.write_text("{", "utf-8")
    assert status(record)[1][TEACHERS, 0].progress is None


def test_a_slow_worker_is_not_silent(record: RunRecord) -> None:
    from arena_distill.pipeline.task_progress import read_progress

    file = record.progress_directory / f"{STUDENTS}_task_1.json"
    file.parent.mkdir(parents=True)
    said = {"task": "train", "done": 10, "total": 20, "unit": "steps", "rows_per_second": 0.02, "updated": 0.0}
    for minutes, seconds_left, silent in ((10, 3000, False), (30, 3000, True), (10, 300, True), (2, 300, False)):
        beat = said | {"updated": time.time() - 60 * minutes, "seconds_left": seconds_left}
        file.write_text(json.dumps(beat), "utf-8")
        found = read_progress(record.progress_directory, STUDENTS, 1)
        assert found is not None and found.silent == silent


def test_json_says_the_same(record: RunRecord, tmp_path: Path) -> None:
    submitted(record, POST, "25", None)
    slurm_says(tmp_path, {"id": "25", "stage": POST, "state": "TIMEOUT"})
    found = run_status(settings(record))
    said = json.loads(found.as_json())
    assert said["run"] == "x" and said["next"] == found.next
    assert [(line["stage"], line["state"], line["artifact"]["state"]) for line in said["tasks"]] == [
        (line.stage, line.state, line.artifact.state) for line in found.tasks
    ]
    assert said["tasks"][0]["job"] == "25" and said["tasks"][0]["slurm_state"] == "TIMEOUT"


def test_shards_stand_beside_the_folds_that_they_make(record: RunRecord, tmp_path: Path) -> None:
    job = submitted(record, LOGITS, "27", [0, 1, 2])
    record.add(replace(job, job_id="28", array="shard"))
    slurm_says(
        tmp_path,
        {"id": "28_0", "stage": LOGITS, "state": "COMPLETED"},
        {"id": "28_1", "stage": LOGITS, "state": "RUNNING"},
    )
    lines = {task: line for (stage, task), line in status(record)[1].items() if stage == LOGITS}
    assert {task: (line.array, line.state) for task, line in lines.items()} == {
        0: ("shard", "done"),  # its part is; the folds wait for the others
        1: ("shard", "running"),
        2: ("shard", "unknown"),
    }
    assert lines[0].artifact.state == "missing"
