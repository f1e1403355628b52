"""How long `make demo` takes once everything is set up, beside what it took before work on speed began.

    python bench/demo.py                   # minutes; all nine steps in a copy of this repository
    python bench/demo.py --quick           # step 2 alone: whether it runs

What it took before, at revision 8499b03, was measured on two cores of the processors that SECONDS_BEFORE names; on
another machine there is nothing to compare with, and the line says so.

Equality: the judges are as good. Each teacher's log loss on the 1,500 out-of-fold rows is at most 0.01 above what it
was, and the submission's, on 300 rows, at most 0.02.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import REPOSITORY, Row, arguments, finish
from machine import machine
from startup import LEFT_OUT, environment

TARGET = 2.0
BEFORE = {
    "revision": "8499b03",
    "out_of_fold": {"tiny-bert": 0.9597, "tiny-llama": 1.0315},
    "submission": 0.9979,
}
CORES = 2
SECONDS_BEFORE = {"AMD EPYC": 576.0, "Intel(R) Xeon(R) Processor": 596.0}  # the latter without AMX
OUT_OF_FOLD_BOUND, SUBMISSION_BOUND = 0.01, 0.02  # nats
RUN = {"DEMO_TRAIN": "data/sample/train.csv", "DEMO_TEST": "data/sample/test.csv"}
RUN |= {"DEMO_LABELS": "data/sample/test_labels.csv", "RUN": "demo"}
STEP = re.compile(r"(step\d)\w*: done in (\d+) s")


def main() -> int:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "repository"
        shutil.copytree(REPOSITORY, copy, ignore=LEFT_OUT, symlinks=True)
        (copy / "logs").mkdir()
        command = ["bash", "step2_make_folds.sh"] if options.quick else ["bash", "scripts/demo.sh"]
        settings = RUN | ({"PROFILE": "tiny"} if options.quick else {})
        started = time.perf_counter()
        done = subprocess.run(command, cwd=copy, env=environment(copy, settings), capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
        found = {} if options.quick else quality(copy)
        bases = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    result = {"seconds": seconds, "steps": steps(done.stdout + done.stderr), "revision": bases.stdout.strip(), **found}
    before = {**BEFORE, "seconds": SECONDS_BEFORE}
    finish("demo", {"measured": result, "before": before}, [line(seconds, found)], options.quick)
    return 0


def steps(printed: str) -> dict[str, list[int]]:
    """Seconds of every task, by step."""
    tasks: dict[str, list[int]] = {}
    for name, seconds in STEP.findall(printed):
        tasks.setdefault(name, []).append(int(seconds))
    return tasks


def quality(copy: Path) -> dict[str, Any]:
    """Log losses of teachers and submission."""
    manifest = json.loads((copy / "model_save/demo/teacher_logits/oof_probs.manifest.json").read_text("utf-8"))
    scores = json.loads((copy / "sub/demo_evaluation.json").read_text("utf-8"))["scores"]
    losses = {name: manifest["metrics"][name]["log_loss"] for name in BEFORE["out_of_fold"]}
    return {"out_of_fold": losses, "submission": scores["log_loss"]["value"]}


def line(seconds: float, found: dict[str, Any]) -> Row:
    """How much sooner it is done, and how good what it makes is."""
    here = machine()
    if not found:
        return Row("make demo", f"itself at {BEFORE['revision']}", None, None, True, "a quick look: step 2 alone")
    before: dict[str, float] = BEFORE["out_of_fold"]
    as_good = all(found["out_of_fold"][name] <= before[name] + OUT_OF_FOLD_BOUND for name in before)
    as_good &= found["submission"] <= BEFORE["submission"] + SUBMISSION_BOUND
    losses = ", ".join(f"{name} {value:.4f} ({before[name]:.4f})" for name, value in found["out_of_fold"].items())
    detail = f"log loss out of fold: {losses}; of the submission "
    detail += f"{found['submission']:.4f} ({BEFORE['submission']:.4f})"
    cpu = str(here["cpu"])
    earlier = next((took for name, took in SECONDS_BEFORE.items() if name in cpu and here["cores"] == CORES), None)
    if earlier is None:
        detail += "; what it took before was measured on other machines"
        return Row("make demo", "-", seconds, None, as_good, detail, unit="s")
    detail = f"{seconds:.0f} s ({earlier:.0f}); {detail}"
    return Row("make demo", f"itself at {BEFORE['revision']}", earlier / seconds, TARGET, as_good, detail)


if __name__ == "__main__":
    raise SystemExit(main())
