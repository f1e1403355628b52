"""The shell around the workers: real bash, real signals, stand-in workers that save on a signal and end with 75."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arena_distill.runtime.errors import EXIT_BAD_INPUT, EXIT_BAD_SETTINGS, EXIT_REQUEUE
from tests.conftest import GENERAL_SETTINGS, OWN_PREFIXES, REPOSITORY

PATIENCE = 120.0  # seconds until something that must happen is given up
STAGE_SCRIPTS = sorted(path.name for path in REPOSITORY.glob("*.sh") if path.name != "pipeline.sh")
SUBMITTER = "distill_all_folds.sh"
SHELL_SETTINGS = {
    *("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "STAGE_THREADS", "CPUS_PER_TASK", "GRACE", "MAX_REQUEUES"),
    *("PROCESSES_PER_NODE", "REPO_ROOT", "HEARTBEAT_FILE", "STOP_FILE", "CUDA_VISIBLE_DEVICES"),
}

WORKER = '''
"""Goes through its steps, the number of which it keeps in ./state; what to do otherwise is said by HOW."""
import os, signal, subprocess, sys, time
from pathlib import Path

how, name, rank = os.environ.get("HOW", ""), Path(sys.argv[0]).name, os.environ.get("RANK", "")
state = Path(f"state_{name}{rank}")
told = []
tell = signal.SIG_IGN if how == "deaf" else lambda number, _: told.append(signal.Signals(number).name)
for number in () if how == "careless" else (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, tell)
if how == "deaf":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
seen = ("HEARTBEAT_FILE", "OMP_NUM_THREADS", "FOLD")
print(name, rank, "begins", sys.argv[1:], {key: os.environ[key] for key in seen if os.environ.get(key)}, flush=True)
stop = os.environ.get("STOP_FILE")
try:
    while not told and not (stop and Path(stop).exists()):
        if how.startswith("exit") or Path("enough").exists() or state.exists():
            print(name, "ends", flush=True)
            sys.exit(int(how.removeprefix("exit") or 0) if how.startswith("exit") else 0)
        time.sleep(0.02)
except KeyboardInterrupt:
    print(name, "interrupted", flush=True)
    sys.exit(130)
print(name, rank, "was told", *told, flush=True)
if how == "finishes":
    sys.exit(0)
if how == "fails":
    sys.exit(3)
state.write_text("saved")
print(name, rank, "saved", flush=True)
sys.exit(75)
'''


class Running:
    """A script that runs in a session of its own, as in a terminal, with what it has printed so far."""

    def __init__(self, site: Site, command: list[str], environment: dict[str, str]) -> None:
        self.site = site
        self.log = site.root / "printed"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=site.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def until(self, text: str, times: int = 1) -> Running:
        deadline = time.monotonic() + PATIENCE
        while self.printed.count(text) < times:
            assert self.process.poll() is None, f"ended before it printed {text!r}:\n{self.printed}"
            assert time.monotonic() < deadline, f"never printed {text!r}:\n{self.printed}"
            time.sleep(0.02)
        return self

    def signal(self, number: int) -> Running:
        """To the script alone, as Slurm and kill do."""
        self.process.send_signal(number)
        return self

    def ctrl_c(self) -> Running:
        """To all that the terminal has in the foreground."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self

    def end(self) -> int:
        """Its exit code; nothing of it may be left."""
        code = self.process.wait(timeout=PATIENCE)
        left = self.site.processes()
        assert not left, f"left behind: {left}\n{self.printed}"
        assert not list((self.site.root / "logs").iterdir()), "a stop file stayed"
        return code


class Site:
    """A repository with the real shell and the stand-in for every worker."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("scripts", "conf/profiles", "logs"):
            (root / name).mkdir(parents=True)
        for name in ("stage.sh", "supervise.sh", "launch.sh", "torchrun.py"):
            shutil.copy(REPOSITORY / "scripts" / name, root / "scripts")
        for name in STAGE_SCRIPTS:
            shutil.copy(REPOSITORY / name, root)
            for worker in re.findall(r"(?:work|launch) (\S+\.py)", (root / name).read_text("utf-8")):
                (root / worker).write_text(WORKER, "utf-8")

    def script(self, *lines: str) -> str:
        """A stage script with these commands, of which every .py is a worker."""
        for worker in re.findall(r"\S+\.py", " ".join(lines)):
            (self.root / worker).write_text(WORKER, "utf-8")
        text = ["#!/usr/bin/env bash", 'source "$(dirname "${BASH_SOURCE[0]}")/scripts/stage.sh" mine', *lines]
        (self.root / "mine.sh").write_text("\n".join([*text, "log all was done"]) + "\n", "utf-8")
        return "mine.sh"

    def environment(self, **variables: str) -> dict[str, str]:
        ours = (*OWN_PREFIXES, "SLURM_", "SBATCH_", "STEP")
        unwanted = GENERAL_SETTINGS | SHELL_SETTINGS
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours) and name not in unwanted}
        place = {"VENV_DIR": sys.prefix, "SITE": str(self.root), "CUDA_VISIBLE_DEVICES": ""}
        return {**kept, **place, **variables}

    def start(self, script: str, *flags: str, **variables: str) -> Running:
        return Running(self, ["bash", script, *flags], self.environment(**variables))

    def run(self, script: str, *flags: str, **variables: str) -> tuple[int, str]:
        """Exit code and output of a script whose workers have nothing to wait for."""
        (self.root / "enough").touch()
        running = self.start(script, *flags, **variables)
        code = running.end()
        (self.root / "enough").unlink()
        return code, running.printed

    def processes(self) -> dict[int, str]:
        """Those that were started here and still run."""
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if f"SITE={self.root}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                    found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "a repository")
    yield site
    for process in site.processes():
        os.kill(process, signal.SIGKILL)


# A signal while a worker runs


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_reaches_the_worker_which_saves_and_nothing_comes_after_it(site: Site, number: signal.Signals) -> None:
    script = site.script("work one.py", "work two.py")
    running = site.start(script).until("one.py  begins").signal(number)
    assert running.end() == EXIT_REQUEUE
    assert f"one.py  was told {number.name}" in running.printed and "one.py  saved" in running.printed
    assert "two.py" not in running.printed and "all was done" not in running.printed
    assert "the same command goes on" in running.printed

    code, printed = site.run(script)
    assert code == 0
    assert printed.index("one.py ends") < printed.index("two.py ends") < printed.index("all was done")


@pytest.mark.parametrize("how", ["", "deaf"])
def test_ctrl_c_ends_everything_with_130(site: Site, how: str) -> None:
    running = site.start(site.script("work one.py", "work two.py"), HOW=how).until("one.py  begins").ctrl_c()
    assert running.end() == 130
    assert "two.py" not in running.printed


def test_an_interrupt_for_the_script_alone_is_passed_on(site: Site) -> None:
    running = site.start(site.script("work one.py", "work two.py")).until("one.py  begins").signal(signal.SIGINT)
    assert running.end() == 130
    assert "one.py interrupted" in running.printed and "two.py" not in running.printed


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_worker_that_does_not_end_in_time_is_killed_with_its_children(site: Site, number: signal.Signals) -> None:
    running = site.start(site.script("work one.py", "work two.py"), HOW="deaf", GRACE="1").until("one.py  begins")
    assert len(site.processes()) >= 3, "script, worker and its child"
    assert running.signal(number).end() == EXIT_REQUEUE
    assert "not ended in time" in running.printed and "two.py" not in running.printed


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_worker_that_dies_of_the_signal_counts_as_stopped(site: Site, number: signal.Signals) -> None:
    """As one that still loads its libraries does."""
    running = site.start(site.script("work one.py"), HOW="careless").until("one.py  begins").signal(number)
    assert running.end() == EXIT_REQUEUE


def test_a_worker_that_fails_after_the_signal_has_failed(site: Site) -> None:
    running = site.start(site.script("work one.py"), HOW="fails").until("one.py  begins").signal(signal.SIGTERM)
    assert running.end() == EXIT_BAD_INPUT
    assert "stopped with exit code 3" in running.printed


def test_a_worker_that_finishes_in_spite_of_the_signal_has_done_its_work(site: Site) -> None:
    running = site.start(site.script("work one.py"), HOW="finishes").until("one.py  begins").signal(signal.SIGUSR1)
    assert running.end() == 0
    assert "all was done" in running.printed


def test_after_a_signal_no_further_worker_begins(site: Site) -> None:
    script = site.script("work one.py", "work two.py")
    running = site.start(script, HOW="finishes").until("one.py  begins").signal(signal.SIGUSR1)
    assert running.end() == EXIT_REQUEUE
    assert "two.py" not in running.printed
    assert running.printed.count("asked to stop") == 1, "the second was not even started to be stopped"


def test_a_signal_between_two_workers_is_not_lost(site: Site) -> None:
    script = site.script("work one.py", "log between", "until [ -e go_on ]; do sleep 0.05; done", "work two.py")
    (site.root / "enough").touch()
    running = site.start(script).until("between").signal(signal.SIGTERM)
    (site.root / "go_on").touch()
    assert running.end() == EXIT_REQUEUE
    assert "two.py" not in running.printed
    assert "asked to stop" not in running.printed, "there was none to ask"


@pytest.mark.parametrize("code", [1, EXIT_BAD_SETTINGS, EXIT_BAD_INPUT, EXIT_REQUEUE])
def test_the_exit_code_is_the_workers_and_nothing_comes_after_it(site: Site, code: int) -> None:
    found, printed = site.run(site.script("work one.py", "work two.py"), HOW=f"exit{code}")
    assert found == code
    assert "one.py ends" in printed and "two.py" not in printed


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_processes_of_torchrun_are_told_by_a_file_and_all_save(site: Site, number: signal.Signals) -> None:
    running = site.start(site.script("launch one.py", "work two.py"), PROCESSES_PER_NODE="2")
    running.until(" begins", times=2).signal(number)
    assert running.end() == EXIT_REQUEUE
    assert {path.name for path in site.root.glob("state_*")} == {"state_one.py0", "state_one.py1"}
    assert "two.py" not in running.printed and "Traceback" not in running.printed


@pytest.mark.slow
def test_a_refusal_keeps_its_exit_code_under_torchrun_and_a_crash_is_one(site: Site) -> None:
    script = site.script("launch one.py", "work two.py")
    code, printed = site.run(script, HOW="exit3", CUDA_VISIBLE_DEVICES="0,1")
    assert code == EXIT_BAD_INPUT and "2 processes" in printed and "Traceback" not in printed
    code, printed = site.run(script, HOW="exit9", PROCESSES_PER_NODE="2")
    assert code == 1 and "exitcode: 9" in printed.replace(" ", "").replace("exitcode:", "exitcode: ")
    assert "two.py" not in printed


@pytest.mark.slow
def test_a_preemption_that_only_torchrun_hears_of_counts_as_one(site: Site) -> None:
    """With a grace time Slurm signals the steps of a job, and not its script."""
    running = site.start(site.script("launch one.py", "work two.py"), PROCESSES_PER_NODE="2").until(" begins", times=2)
    (torchrun,) = [process for process, command in site.processes().items() if "scripts/torchrun.py" in command]
    os.kill(torchrun, signal.SIGTERM)
    assert running.end() == EXIT_REQUEUE
    assert {path.name for path in site.root.glob("state_*")} == {"state_one.py0", "state_one.py1"}
    assert "two.py" not in running.printed


@pytest.mark.slow
def test_ctrl_c_ends_torchrun_and_its_processes(site: Site) -> None:
    running = site.start(site.script("launch one.py"), PROCESSES_PER_NODE="2").until(" begins", times=2).ctrl_c()
    assert running.end() == 130


def test_help_of_torchrun_imports_no_torch_and_says_where_its_flags_are() -> None:
    command = [sys.executable, "-X", "importtime", "scripts/torchrun.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "usage: torchrun.py" in done.stdout and "python -m torch.distributed.run --help" in done.stdout
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    command = [sys.executable, "-m", "torch.distributed.run", "--help"]
    assert "--nproc-per-node" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("devices", ["", "-1", "NoDevFiles", "3"])
def test_without_two_gpus_there_is_one_process(site: Site, devices: str) -> None:
    code, printed = site.run(site.script("launch one.py"), CUDA_VISIBLE_DEVICES=devices)
    assert code == 0
    assert "one.py  begins" in printed and "processes" not in printed


# Jobs of several commands


def test_a_job_of_all_folds_stops_within_a_fold_and_goes_on_with_it(site: Site) -> None:
    running = site.start("job_distill_all_in_one.sh", CV_NUM_FOLDS="2").until("main.py  begins").signal(signal.SIGUSR1)
    assert running.end() == EXIT_REQUEUE
    assert running.printed.count("main.py  begins") == 1 and "main.py  saved" in running.printed

    code, printed = site.run("job_distill_all_in_one.sh", CV_NUM_FOLDS="2")
    assert code == 0
    modes = re.findall(r"main.py  begins \['--mode', '(\S+)'\].*?'FOLD': '(\d)'", printed)
    steps = ("student-distill-train", "student-calibrate", "student-infer")
    assert modes == [(mode, fold) for fold in "01" for mode in steps]
    workers = re.findall(r"(\w+\.py)  begins", printed)[len(modes) :]
    assert workers == ["ensemble_run.py", "evaluate.py", "report.py"]


def test_ctrl_c_ends_a_job_within_a_job(site: Site) -> None:
    running = site.start("job_distill_all_in_one.sh", CV_NUM_FOLDS="2").until("main.py  begins").ctrl_c()
    assert running.end() == 130
    assert running.printed.count("main.py  begins") == 1


def test_a_fold_that_is_refused_ends_the_job_of_all_folds_with_its_code(site: Site) -> None:
    code, printed = site.run("job_distill_all_in_one.sh", CV_NUM_FOLDS="2", HOW="exit2")
    assert code == EXIT_BAD_SETTINGS
    assert printed.count("main.py  begins") == 1


# What a worker is given


def test_flags_reach_the_worker_as_they_were_given(site: Site) -> None:
    flags = ["--out", "a b", "*", "", "$HOME", "step7", "it's"]
    code, printed = site.run(site.script('work one.py "$@"'), *flags)
    assert code == 0
    assert f"begins {flags}" in printed


@pytest.mark.parametrize(
    ("variables", "profile", "threads"),
    [
        ({}, "", None),
        ({"CPUS_PER_TASK": "3"}, "CPUS_PER_TASK=5", "3"),
        ({}, "CPUS_PER_TASK=5 # of every stage", "5"),
        ({"CPUS_PER_TASK": "3"}, "STEP3_CPUS=2", "2"),
        ({"STEP3_CPUS": "4"}, "STEP3_CPUS=2", "4"),
        ({"STEP4_CPUS": "4"}, "", None),
        ({"CPUS_PER_TASK": "0", "SLURM_CPUS_PER_TASK": "6"}, "", "6"),
        ({"SLURM_CPUS_PER_TASK": "6", "CPUS_PER_TASK": "3"}, "", "3"),
        ({"OMP_NUM_THREADS": "7", "CPUS_PER_TASK": "3", "STEP3_CPUS": "4"}, "", "7"),
    ],
)
def test_threads_are_those_of_the_stage_of_all_stages_or_of_slurm(
    site: Site, variables: dict[str, str], profile: str, threads: str | None
) -> None:
    (site.root / "mine.env").write_text(profile + "\n", "utf-8")
    code, printed = site.run("step3_train_teachers.sh", PROFILE="mine.env", **variables)
    assert code == 0
    found = re.search(r"'OMP_NUM_THREADS': '(\d+)'", printed)
    assert (found and found[1]) == threads


def test_a_script_that_another_calls_chooses_its_own_threads(site: Site) -> None:
    """STEP9_CPUS is of step 9 alone; and a job that is submitted by another is not bound to that one's single core."""
    code, printed = site.run("job_distill_all_in_one.sh", CV_NUM_FOLDS="2", CPUS_PER_TASK="2", STEP9_CPUS="1")
    assert code == 0
    threads = re.findall(r"(\w+\.py)  begins.*?'OMP_NUM_THREADS': '(\d)'", printed)
    assert dict(threads) == {"main.py": "2", "ensemble_run.py": "1", "evaluate.py": "1", "report.py": "1"}


@pytest.mark.slow
def test_processes_share_the_threads_of_their_job(site: Site) -> None:
    code, printed = site.run(site.script("launch one.py", "work two.py"), PROCESSES_PER_NODE="2", CPUS_PER_TASK="6")
    assert code == 0
    assert re.findall(r"one.py \d begins.*?'OMP_NUM_THREADS': '(\d)'", printed) == ["3", "3"]
    assert re.findall(r"two.py  begins.*?'OMP_NUM_THREADS': '(\d)'", printed) == ["6"], "one process has all of them"


@pytest.mark.parametrize("name", ["CPUS_PER_TASK", "STEP3_CPUS", "GRACE", "PROCESSES_PER_NODE"])
def test_a_number_that_is_none_is_refused_by_name(site: Site, name: str) -> None:
    code, printed = site.run("step3_train_teachers.sh", **{name: "many"})
    assert code == EXIT_BAD_SETTINGS
    assert f"error: {name}=many" in printed and "begins" not in printed


@pytest.mark.parametrize(
    ("script", "variables", "beat"),
    [
        ("step2_make_folds.sh", {"FOLD": "3"}, "step2_make_folds"),
        ("step3_train_teachers.sh", {}, "step3_train_teachers"),
        ("step3_train_teachers.sh", {"SLURM_ARRAY_TASK_ID": "2"}, "step3_train_teachers_fold_2"),
        ("step3_train_teachers.sh", {"TEACHER_FOLDS": "0,2"}, "step3_train_teachers"),
        ("step4_infer_fold.sh", {"FOLD": "0"}, "step4_infer_fold_fold_0"),
        ("step4_infer_teacher_logits.sh", {"SLURM_ARRAY_TASK_ID": "1"}, "step4_infer_teacher_logits_fold_1"),
        (
            "step4_infer_teacher_logits.sh",
            {"SLURM_ARRAY_TASK_ID": "1", "INFER_TRAIN_SHARDS": "4"},
            "step4_infer_teacher_logits_task_1",
        ),
        ("step5_distill_student.sh", {"FOLD": "4"}, "step5_distill_student_fold_4"),
        ("job_distill.sh", {"FOLD": "4"}, "job_distill_fold_4"),
        ("job.sh", {}, "job"),
    ],
)
def test_each_job_tells_its_progress_in_a_file_of_its_own(
    site: Site, script: str, variables: dict[str, str], beat: str
) -> None:
    place = site.root / "out put"
    code, printed = site.run(script, RUN="x", OUTPUT_DIR=str(place), **variables)
    assert code == 0, printed
    assert set(re.findall(r"'HEARTBEAT_FILE': '(.*?)'", printed)) == {
        str(place / "model_save" / "x" / "pipeline" / "progress" / f"{beat}.json")
    }
    assert not place.exists(), "a job that is refused leaves nothing"


# Where the script is, and what a site adds


def spooled(site: Site, tmp_path: Path) -> Path:
    """A stage script as Slurm runs it: a copy elsewhere, with another name."""
    copy = tmp_path / "spool" / "slurm_script"
    copy.parent.mkdir()
    shutil.copy(site.root / "step2_make_folds.sh", copy)
    return copy


@pytest.mark.parametrize("variable", ["SLURM_SUBMIT_DIR", "REPO_ROOT"])
def test_a_copy_finds_the_repository(site: Site, tmp_path: Path, variable: str) -> None:
    code, printed = site.run(str(spooled(site, tmp_path)), **{variable: str(site.root)})
    assert code == 0
    assert "make_folds.py ends" in printed


def test_a_copy_that_finds_no_repository_says_what_to_do(site: Site, tmp_path: Path) -> None:
    code, printed = site.run(str(spooled(site, tmp_path)), SLURM_SUBMIT_DIR=str(tmp_path))
    assert code == EXIT_BAD_SETTINGS
    assert "no repository found -> submit from inside it, or export REPO_ROOT" in printed


def test_the_sites_own_script_may_use_what_is_not_set_and_fail_in_parts(site: Site) -> None:
    """As the functions of environment modules and conda do."""
    lines = ("echo $NOT_SET_ANYWHERE", "false", "export FROM_THE_SITE=1", "[ -d /nowhere ]")
    (site.root / "conf" / "cluster.sh").write_text("\n".join(lines) + "\n", "utf-8")
    code, printed = site.run(site.script('log "site: $FROM_THE_SITE"', "work one.py"))
    assert code == 0, printed
    assert "site: 1" in printed and "one.py ends" in printed


def test_after_the_sites_own_script_a_failure_still_ends_the_stage(site: Site) -> None:
    (site.root / "conf" / "cluster.sh").write_text("true\n", "utf-8")
    code, printed = site.run(site.script("false", "work one.py"))
    assert code == 1 and "one.py" not in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("export SBATCH_ACCOUNT=(\n", "is no valid bash"),
        ("module() { exit 1; }\nmodule load x\n", "ends whatever reads it"),
    ],
    ids=["no bash", "exit"],
)
def test_a_sites_own_script_that_is_broken_is_named_and_nothing_runs(site: Site, text: str, said: str) -> None:
    (site.root / "conf" / "cluster.sh").write_text(text, "utf-8")
    code, printed = site.run(site.script("work one.py"))
    assert code != 0 and "one.py" not in printed
    assert f"conf/cluster.sh {said}" in printed


@pytest.mark.parametrize("given", [True, False], ids=["VENV_DIR", "no environment"])
def test_without_an_environment_it_says_how_to_make_one(site: Site, given: bool, tmp_path: Path) -> None:
    """Though the sources lie in the directory where it runs."""
    (site.root / "arena_distill").mkdir()
    (site.root / "arena_distill" / "__init__.py").touch()
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python").symlink_to("/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable)
    variables = {"VENV_DIR": "/nowhere" if given else "", "PATH": f"{bare}:/usr/bin:/bin", "PYTHONPATH": ""}
    code, printed = site.run(site.script("work one.py"), **variables)
    assert code == EXIT_BAD_SETTINGS
    assert f"no environment at {'/nowhere' if given else site.root / '.venv'} -> run 'make setup'" in printed


def test_the_template_for_a_site_is_a_shell_script_without_effect() -> None:
    template = REPOSITORY / "conf" / "cluster.sh.example"
    done = subprocess.run(["bash", "-c", f"source '{template}' && env -0"], env={}, capture_output=True, check=True)
    assert {entry.split(b"=")[0] for entry in done.stdout.split(b"\0")} <= {b"PWD", b"SHLVL", b"_", b""}
    wakened = re.sub(r"(?m)^# ((?:export |module |VENV_DIR=|source ).*)$", r"\1", template.read_text("utf-8"))
    subprocess.run(["bash", "-n"], input=wakened, text=True, check=True)


# Headers


@pytest.mark.parametrize("script", STAGE_SCRIPTS)
def test_slurm_warns_a_job_before_its_time_limit_requeues_it_and_keeps_its_log(script: str) -> None:
    text = (REPOSITORY / script).read_text("utf-8")
    head, _, commands = text.partition("\n\n")
    assert "#SBATCH" not in commands, "sbatch reads no options after the first command"
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", head, re.MULTILINE))
    assert {"job-name", "time", "cpus-per-task", "mem"} <= options.keys()
    assert re.fullmatch(r"logs/%x_(%j|%A_%a)\.out", options["output"])
    assert options["open-mode"] == "append"
    if script == SUBMITTER:  # started again, it would submit the folds a second time
        assert "no-requeue" in options
    else:
        assert "requeue" in options and options["signal"] == "B:USR1@300"
    assert f'scripts/stage.sh" {Path(script).stem} ||' in commands
