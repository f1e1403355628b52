"""A copy of the repository for a test to work in: what it writes stays out of the checkout."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY, SAMPLE
from tests.slurm.cluster import Cluster, Done, login_environment

PROFILE = "small"
RUN = "t"
N_FOLDS = 2
SMALL_JOB = {"SBATCH_MEM_PER_NODE": "1500M", "SBATCH_TIMELIMIT": "10"}
"""What users export who submit a script by themselves to a cluster of small nodes; the rest is as the headers say."""


@dataclass(frozen=True)
class Workplace:
    """A repository, what its commands are told, and the cluster that they submit to."""

    root: Path
    cluster: Cluster | None = None
    profile: str = PROFILE

    def environment(self, **variables: str) -> dict[str, str]:
        """A user's, with the profile and the run of the tests; ``variables`` win."""
        own = {"VENV_DIR": sys.prefix, "PYTHONPATH": str(self.root), "PROFILE": self.profile, "RUN": RUN}
        own["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait leave the core to other tests
        return login_environment() | own | (self.cluster.environment if self.cluster else {}) | variables

    def run(self, *command: str, cwd: Path | None = None, seconds: float = 900, **variables: str) -> Done:
        """A command in the repository (or ``cwd``) with both outputs; after ``seconds`` all of its processes end."""
        process = subprocess.Popen(
            command,
            cwd=cwd or self.root,
            env=self.environment(**variables),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        try:
            printed = process.communicate(timeout=seconds)
        except BaseException:  # also Ctrl-C: nothing is to be left behind
            _end_group(process)
            raise
        return subprocess.CompletedProcess(command, process.returncode, *printed)

    def pipeline(self, *flags: str, seconds: float = 900, **variables: str) -> Done:
        """``./pipeline.sh …``."""
        return self.run("./pipeline.sh", *flags, seconds=seconds, **variables)

    def sbatch(self, script: str, *options: str, cwd: Path | None = None, **variables: str) -> str:
        """Submit a script of the repository; the job's id."""
        command = ("sbatch", "--parsable", *options, str(self.root / script))
        done = self.run(*command, cwd=cwd, **SMALL_JOB | variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(";")[0]

    def status(self) -> dict[tuple[str, int | str | None], dict[str, Any]]:
        """What ``./pipeline.sh status`` knows of every task, by stage and task."""
        done = self.pipeline("status", RUN, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return {(line["stage"], line["task"]): line for line in json.loads(_without_log_lines(done.stdout))["tasks"]}

    def submitted(self) -> list[dict[str, Any]]:
        """Every job that the pipeline has recorded, oldest first."""
        record = self.models / "pipeline" / "jobs.jsonl"
        return [json.loads(line) for line in record.read_text("utf-8").splitlines()] if record.is_file() else []

    def job_of(self, stage: str) -> str:
        """The last job that the pipeline submitted for a stage; its id."""
        return [job["job_id"] for job in self.submitted() if job["stage"].startswith(stage)][-1]

    def copy(self, folder: Path, cluster: Cluster | None = None, profile: str | None = None) -> Workplace:
        """The same, with all that was written so far, for a test to change."""
        shutil.copytree(self.root, folder, symlinks=True)
        return replace(self, root=folder, cluster=cluster or self.cluster, profile=profile or self.profile)

    def remove(self, *patterns: str) -> None:
        """Files and directories, by patterns that must match something."""
        for pattern in patterns:
            found = sorted(self.root.glob(pattern))
            assert found, f"{pattern}: nothing to remove"
            for path in found:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    @property
    def models(self) -> Path:
        """Where the run's models are."""
        return self.root / "model_save" / RUN

    @property
    def submission(self) -> Path:
        """What the chain ends with."""
        return self.root / "sub" / f"{RUN}_final_ensemble.csv"

    def logs(self) -> str:
        """All that jobs printed."""
        return "\n".join(f"--- {path.name}\n{path.read_text('utf-8')}" for path in sorted(self.root.glob("logs/*.out")))


def _end_group(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _without_log_lines(printed: str) -> str:
    """The document that a script printed between the lines of its prologue."""
    return printed[printed.index("{") : printed.rindex("}") + 1]


def tracked_files(repository: Path) -> list[str]:
    """What is in git, or would be after ``git add .``: no outputs, no site's own settings."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, check=True).stdout.decode().split("\0")
    return [name for name in listed if name and (repository / name).is_file()]


def make_workplace(root: Path, backbones: Path) -> Workplace:
    """A copy of this repository with the tests' profile, votes and models; nothing has run in it."""
    for name in tracked_files(REPOSITORY):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, root / name)
    shutil.copy2(Path(__file__).with_name(f"{PROFILE}.env"), root / "conf" / "profiles")
    data = root / "data" / "small"
    data.mkdir()
    for name, rows in (("train.csv", 160), ("test.csv", 40), ("test_labels.csv", 40)):
        _first_rows(SAMPLE / name, rows, data / name)
    for family in ("llama", "bert"):
        shutil.copytree(backbones / family, data / family)
    return Workplace(root)


def _first_rows(file: Path, rows: int, into: Path) -> None:
    with file.open(newline="", encoding="utf-8") as source, into.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(itertools.islice(csv.reader(source), rows + 1))
