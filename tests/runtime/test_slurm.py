"""How Slurm's words are read. What it prints here was printed by Slurm 22.05, but for sacct, which needs accounting:
its lines are in the form that its manual gives. Commands of the same names stand in for Slurm's where it is about what
we do with their answers; what a real cluster does is tested in ``tests/slurm``."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from arena_distill.runtime import slurm
from arena_distill.runtime.slurm import ACTIVE, SlurmUnreachable, SubmissionError, TaskState
from arena_distill.runtime.slurm_states import read_sacct, read_scontrol, task_numbers

WAITING_RANGE = (
    "JobId=26 ArrayJobId=26 ArrayTaskId=2-4%2 ArrayTaskThrottle=2 JobName=arr UserId=root(0) GroupId=root(0) "
    "MCS_label=N/A Priority=4294901738 Nice=0 Account=(null) QOS=(null) JobState=PENDING Reason=JobArrayTaskLimit "
    "Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=00:10:00 "
    "TimeMin=N/A SubmitTime=2026-11-22T21:28:06 EligibleTime=Unknown AccrueTime=2026-11-22T21:28:06 StartTime=Unknown "
    "EndTime=Unknown ReqNodeList=(null) ExcNodeList=(null) NodeList= NumNodes=1 NumCPUs=1 CPUs/Task=1 "
    "ReqB:S:C:T=0:0:*:* TRES=cpu=1,mem=100M,node=1,billing=1 Command=/tmp/S/arr.sh WorkDir=/tmp/S Comment=tok1  "
    "StdErr=/tmp/S/logs/arr_26_4294967294.out StdIn=/dev/null StdOut=/tmp/S/logs/arr_26_4294967294.out Power= "
)
RUNNING = (
    "JobId=34 ArrayJobId=26 ArrayTaskId=1 ArrayTaskThrottle=2 JobName=arr UserId=root(0) JobState=RUNNING Reason=None "
    "Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 ExitCode=0:0 RunTime=1-02:03:04 TimeLimit=00:10:00 "
    "StartTime=2026-11-22T21:28:06 EndTime=2026-11-22T21:38:06 ReqNodeList=(null) ExcNodeList=(null) NodeList=n1 "
    "BatchHost=n1 TRES=cpu=1,mem=100M,node=1,billing=1 Command=/tmp/S/arr.sh StdOut=/tmp/S/logs/arr_26_1.out Power= "
)
FAILED = RUNNING.replace("JobState=RUNNING Reason=None", "JobState=FAILED Reason=NonZeroExitCode").replace(
    "ExitCode=0:0", "ExitCode=3:0"
)
CANCELLED_DEPENDENT = (
    "JobId=31 ArrayJobId=28 ArrayTaskId=1 JobName=my job=x JobState=CANCELLED Reason=DependencyNeverSatisfied "
    "Dependency=aftercorr:26_*(failed) Requeue=1 Restarts=0 ExitCode=0:0 RunTime=20779-21:28:27 StartTime=Unknown "
    "EndTime=2026-11-22T21:28:27 NodeList= StdOut=/tmp/a b/logs/arr_28_1.out Power= KillOInInvalidDependent=Yes "
)
SINGLE = (
    "JobId=27 JobName=job.sh JobState=COMPLETED Reason=None Dependency=(null) Restarts=0 ExitCode=0:0 RunTime=00:00:01 "
    "StartTime=2026-11-22T21:29:06 NodeList=n2 StdOut=/tmp/S/slurm-27.out Power= "
)


# Reading


def test_tasks_that_wait_in_one_line_are_told_one_by_one() -> None:
    states = read_scontrol(WAITING_RANGE + "\n" + RUNNING + "\n")
    assert [(state.job_id, state.task, state.state) for state in states] == [
        *(("26", task, "PENDING") for task in (2, 3, 4)),
        ("26", 1, "RUNNING"),
    ]
    assert states[1] == TaskState(
        "26", 3, "PENDING", "JobArrayTaskLimit", None, "0:0", 0, "", "/tmp/S/logs/arr_26_3.out"
    )
    assert states[3].elapsed_seconds == ((24 + 2) * 60 + 3) * 60 + 4
    assert (states[3].restarts, states[3].node, states[3].log) == (2, "n1", "/tmp/S/logs/arr_26_1.out")
    assert all(state.active for state in states)


def test_how_a_task_ended_is_read() -> None:
    (failed,) = read_scontrol(FAILED)
    assert (failed.state, failed.reason, failed.exit_code, failed.active) == ("FAILED", "NonZeroExitCode", "3:0", False)
    (dependent,) = read_scontrol(CANCELLED_DEPENDENT)
    assert dependent.reason == "DependencyNeverSatisfied" and dependent.dependency == "aftercorr:26_*(failed)"
    assert dependent.elapsed_seconds is None  # Slurm counts from 1970
    assert dependent.log == "/tmp/a b/logs/arr_28_1.out"
    (single,) = read_scontrol(SINGLE)
    assert (single.job_id, single.task, single.state, single.elapsed_seconds) == ("27", None, "COMPLETED", 1)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", [3]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("2-4%2", [2, 3, 4]),
        ("0,2,5-7%3", [0, 2, 5, 6, 7]),
        ("0-8:4", [0, 4, 8]),
        ("", []),
        ("N/A", []),
        ("1-99999999999", []),
    ],
)
def test_ranges_of_tasks(text: str, numbers: list[int]) -> None:
    assert task_numbers(text) == numbers


def test_what_accounting_remembers_is_read() -> None:
    text = "\n".join(
        [
            "12_0|COMPLETED|8042|0:0|node[01-02]",
            "12_1|CANCELLED by 1000|17|0:15|n7",
            "12_[2-3%1]|PENDING|0|0:0|None assigned",
            "13|OUT_OF_MEMORY|5|0:125|n1",
            "14|TIMEOUT|86400|0:0|n1",
            "15+0|RUNNING|1|0:0|n1",  # a heterogeneous job, which none of ours is
            "a line of a site's own",
            "",
        ]
    )
    states = {(state.job_id, state.task): state for state in read_sacct(text)}
    assert set(states) == {("12", 0), ("12", 1), ("12", 2), ("12", 3), ("13", None), ("14", None)}
    assert states["12", 0] == TaskState("12", 0, "COMPLETED", "", 8042, "0:0", 0, "node[01-02]", "")
    assert (states["12", 1].state, states["12", 1].reason) == ("CANCELLED", "by user 1000")
    assert states["12", 3].state == "PENDING" and states["12", 3].elapsed_seconds is None
    assert states["12", 3].node == "" and states["12", 3].active
    assert states["13", None].state == "OUT_OF_MEMORY" and not states["13", None].active


# What sbatch refuses


@pytest.mark.parametrize(
    ("said", "settings"),
    [
        ("invalid partition specified: bad; Batch job submission failed: Invalid partition name specified",
         ["SBATCH_PARTITION"]),
        ("allocation failure: Required partition not available (inactive or drain)", ["SBATCH_PARTITION"]),
        ("Batch job submission failed: User's group not permitted to use this partition", ["SBATCH_PARTITION"]),
        ("Batch job submission failed: Invalid account or account/partition combination specified",
         ["SBATCH_ACCOUNT", "SBATCH_PARTITION"]),
        ("Batch job submission failed: Invalid qos specification", ["SBATCH_QOS"]),
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time "
         "limits)", ["SBATCH_QOS", "SBATCH_TIMELIMIT", "--folds"]),
        ("Invalid generic resource (gres) specification", ["SBATCH_GRES=none"]),
        ("Batch job submission failed: More processors requested than permitted", ["CPUS_PER_TASK", "STEPN_CPUS"]),
        ("Memory specification can not be satisfied; Batch job submission failed: Requested node configuration is not "
         "available", ["SBATCH_MEM_PER_NODE"]),
        ("Batch job submission failed: Memory required by task is not available", ["SBATCH_MEM_PER_NODE"]),
        ("Batch job submission failed: Requested node configuration is not available",
         ["SBATCH_GRES", "CPUS_PER_TASK", "SBATCH_MEM_PER_NODE"]),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
         ["SBATCH_TIMELIMIT"]),
        ("Invalid --time specification", ["SBATCH_TIMELIMIT"]),
        ("Invalid --mem specification", ["SBATCH_MEM_PER_NODE"]),
        ('Invalid numeric value "x" for --cpus-per-task.', ["CPUS_PER_TASK"]),
        ("Invalid --mail-type specification", ["PIPELINE_SBATCH", "STEPN_SBATCH"]),
        ("Batch job submission failed: Invalid job array specification", ["INFER_TRAIN_SHARDS", "--folds"]),
        ("Batch job submission failed: Invalid feature specification", ["SBATCH_CONSTRAINT"]),
        ("Batch job submission failed: Node count specification invalid", ["STEPN_SBATCH"]),
        ("unrecognized option '--frobnicate'", ["PIPELINE_SBATCH"]),
        ("Batch job submission failed: Job dependency problem", ["PIPELINE_SBATCH"]),
        ("Could not establish a configuration source", ["SLURM_CONF"]),
        ("lua: your account has no hours left", ["SBATCH_", "PIPELINE_SBATCH"]),  # a site's own
    ],
)  # fmt: skip
def test_a_refusal_keeps_the_words_of_sbatch_and_names_the_setting_to_change(
    commands: Path, said: str, settings: list[str]
) -> None:
    lines = "\n".join(f"sbatch: error: {line}" for line in said.split("; "))
    command(commands, "sbatch", f"cat >&2 <<'END'\n{lines}\nEND\nexit 1")
    for call in (slurm.submit, slurm.test_only):
        with pytest.raises(SubmissionError) as caught:
            call([], commands / "step3_train_teachers.sh", environment=dict(os.environ), cwd=commands)
        words, arrow, advice = str(caught.value).partition(" -> ")
        assert words == f"sbatch step3_train_teachers.sh: {said}" and arrow
        assert all(setting in advice for setting in settings), advice
        assert caught.value.exit_code == 2


def test_a_refusal_shows_what_the_setting_is_now(commands: Path) -> None:
    command(commands, "sbatch", "echo 'sbatch: error: invalid partition specified: bad' >&2; exit 1")
    environment = dict(os.environ) | {"SBATCH_PARTITION": "bad", "SBATCH_QOS": "long"}
    with pytest.raises(SubmissionError, match=r"\(now SBATCH_PARTITION=bad\)$"):
        slurm.submit([], commands / "job.sh", environment=environment, cwd=commands)


# What we do with the answers


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory first on the path, for commands that stand in for Slurm's."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "_PAUSE_SECONDS", 0.01)
    (tmp_path / "job.sh").write_text("#!/bin/bash\n")
    return tmp_path


def command(directory: Path, name: str, script: str) -> None:
    """A shell script of that name, which notes each call in ``NAME.calls``."""
    path = directory / name
    path.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>"{path}.calls"\n{script}\n', "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def calls(directory: Path, name: str) -> list[str]:
    path = directory / f"{name}.calls"
    return path.read_text("utf-8").splitlines() if path.exists() else []


def test_a_job_gets_the_environment_that_is_given_and_nothing_else(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THIS_PROCESS", "1")
    command(commands, "sbatch", 'env >"$0.env"; pwd >"$0.pwd"; echo "4711;cluster"')
    given = {"PATH": os.environ["PATH"], "FOLDS": "0,1", "ODD": 'a "b" $c', "SLURM_CONF": "/x", "SLURM_NNODES": "2"}
    (commands / "elsewhere").mkdir()
    job = slurm.submit(["--array=0-1"], commands / "job.sh", environment=given, cwd=commands / "elsewhere")
    assert job == "4711"
    seen = (commands / "sbatch.env").read_text("utf-8").splitlines()
    assert {'ODD=a "b" $c', "FOLDS=0,1", "SLURM_CONF=/x", "SLURM_NNODES=2"} <= set(seen)
    assert not any(line.startswith("OF_THIS_PROCESS") for line in seen)
    assert (commands / "sbatch.pwd").read_text("utf-8").strip() == str(commands / "elsewhere")
    (call,) = calls(commands, "sbatch")
    assert call.startswith("--parsable --comment=arena-distill ") and call.endswith(f"--array=0-1 {commands}/job.sh")


def test_what_slurm_set_for_the_job_around_is_not_passed_on(commands: Path) -> None:
    command(commands, "sbatch", 'env >"$0.env"; echo 1')
    given = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CONF": "/x"}
    slurm.submit(["--comment=mine"], commands / "job.sh", environment=given, cwd=commands)
    seen = (commands / "sbatch.env").read_text("utf-8")
    assert "SLURM_CONF=/x" in seen and "SLURM_ARRAY_TASK_ID" not in seen and "SLURM_JOB_ID" not in seen
    assert calls(commands, "sbatch") == [f"--parsable --comment=mine {commands}/job.sh"]


NO_CONTACT = "echo 'sbatch: error: Batch job submission failed: {}' >&2; exit 1"
RESTARTING = NO_CONTACT.format("Unable to contact slurm controller (connect failure)")
LOST = NO_CONTACT.format("Socket timed out on send/recv operation")


def once(first: str, then: str) -> str:
    """One thing at the first call, another at all later ones."""
    return f'if [ ! -e "$0.again" ]; then touch "$0.again"; {first}; fi; {then}'


def submitted(commands: Path) -> str:
    return slurm.submit([], commands / "job.sh", environment=dict(os.environ), cwd=commands, patience_seconds=20)


def test_a_controller_that_restarts_is_waited_for(commands: Path) -> None:
    command(commands, "sbatch", once(RESTARTING, "echo 12"))
    command(commands, "squeue", "exit 1")
    assert submitted(commands) == "12"
    assert calls(commands, "squeue") == []  # it never arrived, so there is nothing to look for


def test_a_job_whose_answer_got_lost_is_found_and_not_submitted_again(commands: Path) -> None:
    command(commands, "sbatch", f'printf "%s" "${{2#--comment=}}" >"$0.token"; {LOST}')
    command(commands, "squeue", f'echo "11|other"; echo "17|$(cat {commands}/sbatch.token)"')
    assert submitted(commands) == "17"
    assert len(calls(commands, "sbatch")) == 1


def test_a_job_that_surely_did_not_arrive_is_submitted_again_and_a_late_twin_is_cancelled(commands: Path) -> None:
    command(commands, "sbatch", f'printf "%s" "${{2#--comment=}}" >"$0.token"; {once(LOST, "echo 18")}')
    seen = f'[ -e {commands}/sbatch.calls ] && [ "$(wc -l <{commands}/sbatch.calls)" -gt 1 ]'
    command(
        commands, "squeue", f'if {seen}; then for id in 17 18; do echo "$id|$(cat {commands}/sbatch.token)"; done; fi'
    )
    command(commands, "scancel", "")
    assert submitted(commands) == "18"
    assert calls(commands, "scancel") == ["17"]


def test_when_nobody_can_say_whether_it_arrived_the_user_is_told(commands: Path) -> None:
    command(commands, "sbatch", LOST)
    command(commands, "squeue", "echo 'slurm_load_jobs error: Access/permission denied' >&2; exit 1")
    with pytest.raises(SubmissionError, match="may be submitted all the same -> look with squeue"):
        submitted(commands)
    with pytest.raises(SubmissionError, match="may be submitted all the same"):
        slurm.submit(["--comment=x"], commands / "job.sh", environment=dict(os.environ), cwd=commands)


def test_a_controller_that_stays_away_ends_the_patience(commands: Path) -> None:
    command(commands, "sbatch", RESTARTING)
    with pytest.raises(SubmissionError, match="scontrol ping says UP"):
        slurm.submit([], commands / "job.sh", environment=dict(os.environ), cwd=commands, patience_seconds=0.1)
    command(commands, "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmUnreachable, match="scontrol: slurm_load_jobs error"):
        slurm.task_states(["12"], patience_seconds=0.1)


def test_without_slurm_it_is_not_available_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.available()
    with pytest.raises(SubmissionError, match="sbatch: not on the path"):
        slurm.submit([], tmp_path / "job.sh", environment=dict(os.environ), cwd=tmp_path)
    with pytest.raises(SlurmUnreachable, match="this machine has no Slurm"):
        slurm.task_states(["12"])
    assert slurm.task_states([]) == {}


def test_a_controller_that_does_not_answer_is_not_available(commands: Path) -> None:
    command(commands, "sbatch", "")
    command(commands, "scontrol", "exit 1")
    assert not slurm.available()
    command(commands, "scontrol", "exit 0")
    assert slurm.available()


def test_accounting_is_asked_for_what_the_queue_has_forgotten(commands: Path) -> None:
    queue = {"26": f"{WAITING_RANGE}\n{RUNNING}", "27": SINGLE}
    cases = "\n".join(f"{job}) cat <<'END'\n{text}\nEND\n;;" for job, text in queue.items())
    forgotten = "*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1 ;;"
    command(commands, "scontrol", f'case "$4" in\n{cases}\n{forgotten}\nesac')
    command(commands, "sacct", "printf '26_0|COMPLETED|20|0:0|n1\\n26_1|FAILED|20|1:0|n1\\n30|TIMEOUT|60|0:0|n2\\n'")
    states = slurm.task_states(["26", "27", "30", "31", "26"])
    assert {key: state.state for key, state in states.items()} == {
        ("26", 0): "COMPLETED",  # forgotten by the queue
        ("26", 1): "RUNNING",  # the queue knows better
        **{("26", task): "PENDING" for task in (2, 3, 4)},
        ("27", None): "COMPLETED",
        ("30", None): "TIMEOUT",
    }
    assert calls(commands, "sacct") == ["-P -n -X --format=JobID,State,ElapsedRaw,ExitCode,NodeList -j 26,30,31"]
    command(commands, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert ("30", None) not in slurm.task_states(["30"])


def test_cancelling_passes_over_what_has_ended(commands: Path) -> None:
    words = "scancel: error: Kill job error on job id 5: Job/step already completing or completed"
    command(commands, "scancel", f"echo '{words}' >&2; exit 1")
    slurm.cancel(["5", "6", "5"])
    assert calls(commands, "scancel") == ["5 6"]
    slurm.cancel([])
    assert calls(commands, "scancel") == ["5 6"]
    command(
        commands, "scancel", "echo 'scancel: error: Kill job error on job id 5: Access/permission denied' >&2; exit 1"
    )
    with pytest.raises(SlurmUnreachable, match="Access/permission denied"):
        slurm.cancel(["5"])


def test_states_in_which_a_job_may_still_run_are_active() -> None:
    assert {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD"} <= ACTIVE
    assert not ACTIVE & {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
