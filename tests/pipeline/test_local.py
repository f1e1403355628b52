"""The scheduler of a local run: real processes in the right order, failures, and an end that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arena_distill.pipeline.command_line import parse
from arena_distill.pipeline.local import has_room, tasks_of
from arena_distill.pipeline.machine import Machine
from arena_distill.pipeline.plan import make_plan
from arena_distill.pipeline.run_record import RunRecord
from arena_distill.runtime.stages import STAGES
from tests.conftest import REPOSITORY

STEP = {stage.number: stage for stage in STAGES.values()}
PATIENCE_SECONDS = 60.0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose stage scripts do nothing but say that they ran, until a test gives one something to do."""
    root = tmp_path / "checkout"
    root.mkdir()
    for stage in STAGES.values():
        write_script(root, stage.number, "")
    return root


def write_script(root: Path, number: int, body: str) -> None:
    """A stage script; $K is its fold."""
    text = f'K=${{FOLD:-}}\necho "begin step{number}.$K" >>order\n{body}\necho "end step{number}.$K" >>order\n'
    (root / STEP[number].script).write_text(f"set -eu\n{text}", "utf-8")


def start(root: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """The orchestrator on that checkout, over two folds, in a session of its own as a terminal would give it."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "pipeline.py"), "--n-folds", "2", *flags]
    told = {"REPO_ROOT": str(root), "OUTPUT_DIR": str(root / "out"), "CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command,
        env={**os.environ, **told, **environment},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(root: Path, *flags: str, **environment: str) -> tuple[int, str]:
    process = start(root, *flags, **environment)
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, said


def order(root: Path) -> list[str]:
    return (root / "order").read_text("utf-8").splitlines()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_task_runs_once_and_after_what_it_waits_for(checkout: Path) -> None:
    code, said = run(checkout, "--jobs", "3")
    assert code == 0, said
    lines = order(checkout)
    tasks = [f"step{n}.{k}" for n in STEP for k in (("0", "1") if n in (3, 4, 5) else ("",))]
    assert sorted(line.partition(" ")[2] for line in lines) == sorted(tasks * 2)
    place = {line: number for number, line in enumerate(lines)}
    for before, after in [
        *((f"step{n}.", f"step3.{k}") for n in (1, 2) for k in "01"),
        *((f"step3.{k}", f"step4.{k}") for k in "01"),
        *((f"step4.{k}", f"step5.{other}") for k in "01" for other in "01"),
        *((f"step5.{k}", "step6.") for k in "01"),
        *((f"step{n}.", f"step{n + 1}.") for n in (6, 7, 8)),
    ]:
        assert place[f"end {before}"] < place[f"begin {after}"], f"{after} did not wait for {before}"


def test_a_fold_goes_on_to_step_4_while_another_is_still_in_step_3(checkout: Path) -> None:
    write_script(checkout, 3, 'if [ "$K" = 1 ]; then until [ -e step4_was_here ]; do sleep 0.05; done; fi')
    write_script(checkout, 4, "touch step4_was_here")
    code, said = run(checkout, "--jobs", "2", "--from", "3", "--to", "4")
    assert code == 0, said


def test_tasks_fill_the_cores_and_no_more(checkout: Path) -> None:
    body = 'mkdir here.$K; ls -d here.* | wc -l >>seen; sleep 0.3; rmdir here.$K; echo "$STEP3_CPUS" >>threads'
    write_script(checkout, 3, body)
    cores = len(os.sched_getaffinity(0))
    code, said = run(checkout, "--from", "3", "--to", "3", "--n-folds", "6", STEP3_CPUS=str(cores))
    assert code == 0, said
    assert (checkout / "seen").read_text().split() == ["1"] * 6, "each took all cores, and had them to itself"
    assert (checkout / "threads").read_text().split() == [str(cores)] * 6


def test_where_there_is_a_gpu_one_task_has_it_at_a_time() -> None:
    plan = make_plan(parse(["--profile", "tiny"]), cores=16)
    tasks = tasks_of(plan)
    teacher, other, folds = tasks[STEP[3].name, 0], tasks[STEP[3].name, 1], tasks[STEP[2].name, None]
    assert not has_room(Machine(cores=16, gpus=1), other, [teacher])
    assert has_room(Machine(cores=16, gpus=1), folds, [teacher])
    assert has_room(Machine(cores=16, gpus=0), other, [teacher])
    assert has_room(Machine(cores=16, gpus=1, jobs=2), other, [teacher])
    assert not has_room(Machine(cores=16, gpus=0, jobs=1), other, [teacher])


def test_a_failing_fold_stops_what_waits_for_it_and_nothing_else(checkout: Path) -> None:
    write_script(checkout, 3, 'if [ "$K" = 0 ]; then echo "error: no such base -> give one" >&2; exit 3; fi')
    code, said = run(checkout, "--run", "x")
    assert code == 3
    lines = order(checkout)
    assert "end step3.1" in lines and "end step4.1" in lines, "the other fold goes on"
    assert not [line for line in lines if line.endswith("step4.0") or "step5" in line or "step6" in line]
    assert "step3 fold 0 failed with exit code 3: no such base -> give one" in said
    assert "not started, as they wait for it: step4, step5 (2), step6, step7, step8, step9" in said
    assert "./pipeline.sh resume x" in said
    tasks = {(task.stage, task.task): task for task in RunRecord(checkout / "out" / "model_save" / "x").local_tasks()}
    failed = tasks[STEP[3].name, 0]
    assert failed.exit_code == 3 and failed.ended and f"its log: {failed.log}" in said
    assert "no such base" in Path(failed.log).read_text("utf-8")
    assert tasks[STEP[3].name, 1].exit_code == 0


def test_a_checkpointed_task_goes_on_and_one_that_never_ends_well_is_given_up(checkout: Path) -> None:
    write_script(checkout, 2, "[ -e saved ] || { touch saved; exit 75; }")
    code, said = run(checkout, "--from", "2", "--to", "2")
    assert (code, order(checkout).count("begin step2.")) == (0, 2), said
    write_script(checkout, 2, "exit 75")
    code, said = run(checkout, "--from", "2", "--to", "2")
    assert code == 75 and "step2 failed with exit code 75" in said


STUBBORN = """
trap 'echo saved >>saved; exit 75' TERM
sleep 600 & echo $! >sleeper.$K; echo $$ >script.$K
touch started.$K
wait
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)],
    ids=["Ctrl-C", "TERM", "USR1"],
)
def test_asked_to_end_it_lets_every_task_save_and_leaves_nothing_behind(
    checkout: Path, number: signal.Signals, code: int
) -> None:
    write_script(checkout, 3, STUBBORN)
    process = start(checkout, "--from", "3", "--jobs", "2", "--run", "x")
    for fold in "01":
        wait_for(checkout / f"started.{fold}")
    process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, said
    assert (checkout / "saved").read_text().split() == ["saved"] * 2, "each was asked once, and had its time"
    pids = [int((checkout / f"{kind}.{fold}").read_text()) for kind in ("script", "sleeper") for fold in "01"]
    assert not [pid for pid in pids if is_alive(pid)]
    assert "./pipeline.sh resume x" in said
    assert not RunRecord(checkout / "out" / "model_save" / "x").is_locked()


def test_a_second_ctrl_c_does_not_wait(checkout: Path) -> None:
    write_script(checkout, 2, "trap '' TERM\necho $$ >script\ntouch started\nwhile :; do sleep 0.1; done")
    process = start(checkout, "--from", "2", "--to", "2")
    wait_for(checkout / "started")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "ending step2" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, said
    assert not is_alive(int((checkout / "script").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_tasks_end_when_the_orchestrator_is_killed(checkout: Path) -> None:
    write_script(checkout, 2, STUBBORN)
    process = start(checkout, "--from", "2", "--to", "2")
    wait_for(checkout / "started.")
    process.kill()
    wait_for(checkout / "saved")


def test_the_same_run_does_not_run_twice_at_once(checkout: Path) -> None:
    write_script(checkout, 2, "touch started\nuntil [ -e go ]; do sleep 0.05; done")
    first = start(checkout, "--from", "2", "--to", "2", "--run", "x")
    wait_for(checkout / "started")
    code, said = run(checkout, "--from", "2", "--to", "2", "--run", "x")
    assert code == 1
    assert f"run x is running here already (process {first.pid} on " in said
    assert all(verb in said for verb in ("status x", "cancel x"))
    assert run(checkout, "--from", "9", "--run", "y")[0] == 0, "another run is not concerned"
    (checkout / "go").touch()
    assert first.wait(PATIENCE_SECONDS) == 0
    assert order(checkout).count("begin step2.") == 1


def test_cancel_ends_a_local_run(checkout: Path) -> None:
    write_script(checkout, 2, STUBBORN)
    first = start(checkout, "--from", "2", "--to", "2", "--run", "x")
    wait_for(checkout / "started.")
    command = [sys.executable, str(REPOSITORY / "scripts" / "pipeline.py"), "cancel", "x"]
    environment = {**os.environ, "REPO_ROOT": str(checkout), "OUTPUT_DIR": str(checkout / "out")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert "resume x" in done.stdout
    assert first.wait(PATIENCE_SECONDS) == 75
    assert (checkout / "saved").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert again.returncode == 0 and "nothing of this run is queued or running" in again.stdout


def test_what_several_tasks_say_is_told_apart_and_each_has_its_log(checkout: Path) -> None:
    write_script(checkout, 3, 'echo "row $K"; printf "no newline"')
    code, said = run(checkout, "--from", "3", "--to", "3", "--jobs", "2")
    assert code == 0
    for fold in "01":
        assert f"[step3 fold {fold}] row {fold}\n" in said
        assert f"[step3 fold {fold}] no newline\n" in said
    tasks = RunRecord(checkout / "out" / "model_save").local_tasks()
    assert sorted(Path(task.log).read_text() for task in tasks) == [f"row {fold}\nno newline" for fold in "01"]


def test_a_torn_line_of_the_record_is_passed_over(checkout: Path) -> None:
    assert run(checkout, "--from", "2", "--to", "2", "--run", "x")[0] == 0
    record = RunRecord(checkout / "out" / "model_save" / "x")
    file = record.directory / "local.jsonl"
    whole = record.local_tasks()
    with file.open("a") as stream:
        stream.write('{"stage": "step2_ma')  # a kill, or a full disk
    assert record.local_tasks() == whole
    record.add_local(whole[0])
    assert [json.loads(line) for line in file.read_text().splitlines()[-1:]] == [vars(whole[0])]
