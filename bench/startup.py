"""How long it takes to be told something: `--help`, and a stage that finds its work done.

    python bench/startup.py
    python bench/startup.py --quick

Wall time of the whole process, the best of five (files in memory, nothing else running). Stages run under bash with
PROFILE=tiny in a copy of this repository: step 2; step 8 with a student of one layer, which it would have to load
torch for if it had something to predict; and `main.py --mode student-train`, likewise.

Equality: a help text names the program; the second run of a stage says "up to date" and leaves every file as it was.

What it does not show: the first start after a reboot or on a network file system, where reading Python's files takes
longer than running them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import REPOSITORY, Row, arguments, finish

HELP_TARGET, STAGE_TARGET = 0.5, 1.0  # seconds
REPEATS = 5
LAUNCHER = "scripts/torchrun.py"  # imports torch, but not to say so
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "model_save", "sub", "logs", "bench", ".*_cache", "__pycache__")
SETTINGS = {"PROFILE": "tiny", "RUN": "bench", "STUDENT_MODEL": "backbone/bert", "STUDENT_MAX_STEPS": "2"}
STUDENT = "model_save/bench/student_distilbert"


@dataclass
class Stage:
    """Something whose second run finds everything there."""

    name: str
    command: list[str]
    settings: dict[str, str] = field(default_factory=dict)


STAGES = (
    Stage("step 2", ["bash", "step2_make_folds.sh"]),
    Stage("main.py --mode student-train", [sys.executable, "main.py", "--mode", "student-train"]),
    Stage("step 8", ["bash", "step8_infer_tta.sh"], {"MODEL_DIR": STUDENT, "TTA_LENGTHS": "64"}),
)


def main() -> int:
    options = arguments(__doc__).parse_args()
    repeats = 1 if options.quick else REPEATS
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "repository"
        shutil.copytree(REPOSITORY, copy, ignore=LEFT_OUT, symlinks=True)
        helped = {name: help_of(name, copy, repeats) for name in commands(copy)}
        backbone = ["scripts/make_tiny_models.py", "--families", "bert", "--hidden", "64", "--layers", "1"]
        run([sys.executable, *backbone, "--out-dir", "backbone"], copy, {})
        stages = {stage.name: up_to_date(stage, copy, repeats) for stage in STAGES}
    result = {"best_of": repeats, "help": helped, "up_to_date": stages}
    finish("startup", {"measured": result}, table(result), options.quick)
    return 0


def commands(copy: Path) -> list[str]:
    """Everything that has a `--help`."""
    return ["main.py", *sorted(str(path.relative_to(copy)) for path in (copy / "scripts").glob("*.py"))]


def run(command: list[str], copy: Path, settings: dict[str, str]) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, cwd=copy, env=environment(copy, settings), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def environment(copy: Path, settings: dict[str, str]) -> dict[str, str]:
    """The package of the copy, the Python at hand, and no other settings than those named."""
    passed = {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    own = {"PYTHONPATH": str(copy), "VENV_DIR": str(Path(sys.executable).parents[1]), "HF_HUB_OFFLINE": "1"}
    return passed | own | settings


def timed(command: list[str], copy: Path, settings: dict[str, str], repeats: int) -> tuple[float, str]:
    """Seconds of the fastest run, and what it printed."""
    seconds, said = float("inf"), ""
    for _ in range(repeats):
        started = time.perf_counter()
        said = run(command, copy, settings)
        seconds = min(seconds, time.perf_counter() - started)
    return round(seconds, 3), said


def help_of(name: str, copy: Path, repeats: int) -> dict[str, Any]:
    """Seconds of `--help`."""
    run([sys.executable, name, "--help"], copy, {})  # its bytecode is compiled once
    seconds, said = timed([sys.executable, name, "--help"], copy, {}, repeats)
    program = Path(name).stem  # pipeline.py answers for pipeline.sh
    return {"seconds": seconds, "as_expected": program in said and "usage" in said.lower()}


def up_to_date(stage: Stage, copy: Path, repeats: int) -> dict[str, Any]:
    """Seconds of a stage that has nothing to do, after one that had."""
    settings = SETTINGS | stage.settings
    started = time.perf_counter()
    run(stage.command, copy, settings)
    first = time.perf_counter() - started
    before = files(copy)
    seconds, said = timed(stage.command, copy, settings, repeats)
    return {
        "seconds": seconds,
        "seconds_with_work": round(first, 2),
        "as_expected": "up to date" in said and files(copy) == before,
    }


def files(copy: Path) -> dict[str, int]:
    """When each result was written."""
    results = (path for name in ("data", "model_save", "sub") for path in (copy / name).rglob("*"))
    kept = (path for path in results if path.is_file() and path.suffix != ".lock" and path.parent.name != "progress")
    return {str(path): path.stat().st_mtime_ns for path in kept}


def table(result: dict[str, Any]) -> list[Row]:
    """The slowest help, and each stage."""
    ours = {name: found for name, found in result["help"].items() if name != LAUNCHER}
    order = sorted(ours, key=lambda name: -ours[name]["seconds"])
    slowest = ours[order[0]]
    over = sum(found["seconds"] > HELP_TARGET for found in ours.values())
    some = ", ".join(f"{name} {ours[name]['seconds']:.2f} s" for name in order[:3])
    launcher = result["help"][LAUNCHER]
    rows = [
        Row(
            f"--help, the slowest of {len(ours)}",
            "-",
            slowest["seconds"],
            HELP_TARGET,
            all(found["as_expected"] for found in ours.values()),
            f"{over} above the target; slowest: {some}; fastest {ours[order[-1]]['seconds']:.2f} s",
            unit="s",
            at_most=True,
        ),
        Row(
            f"{LAUNCHER} --help",
            "-",
            launcher["seconds"],
            HELP_TARGET,
            launcher["as_expected"],
            "the launcher of several processes; its help says where that of torch is",
            unit="s",
            at_most=True,
        ),
    ]
    rows += [
        Row(
            f"{name}, up to date",
            "-",
            found["seconds"],
            STAGE_TARGET,
            found["as_expected"],
            f"with work to do {found['seconds_with_work']:.1f} s",
            unit="s",
            at_most=True,
        )
        for name, found in result["up_to_date"].items()
    ]
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
