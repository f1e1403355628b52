"""What the tests of faults share: a run long enough to be disturbed in the middle, and what is to hold afterwards."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.slurm.cluster import Cluster, eventually
from tests.slurm.workplace import PROFILE, RUN, Workplace

LONG = "long"
"""Profile of runs whose trainings last."""

LONG_SECONDS = 24.0
"""Of a core, for one training with its imports: time enough to see it save, and to disturb it then."""

TEACHERS, STUDENTS = "step3_train_teachers", "step5_distill_student"
_OUTPUTS = {TEACHERS: "small-llama_fold_{}*", STUDENTS: "distilled_small_fold_{}"}
_WEIGHTS = {TEACHERS: "small-llama_fold_{}_lora", STUDENTS: "distilled_small_fold_{}"}


def run_long(place: Workplace) -> None:
    """Do steps 3 to 9 again, with as many steps of training as this machine needs for ``LONG_SECONDS``."""
    place.remove(f"model_save/{RUN}/distilled_small_fold_*", "sub/*")
    settings = {"TEACHER_MAX_STEPS": 2000, "STUDENT_MAX_STEPS": 2000}
    for prefix, number in (("TEACHER", 3), ("STUDENT", 5)):
        name = f"{prefix}_MAX_STEPS"
        while (seconds := _core_seconds(place, settings, number)) < LONG_SECONDS:
            settings[name] = round(settings[name] * 1.3 * LONG_SECONDS / seconds)
        if number == 3:
            _run(place, "--from", "3", "--to", "4")
    _run(place, "--from", "5")


def _core_seconds(place: Workplace, settings: Mapping[str, int], number: int) -> float:
    """Train fold 0 with these settings; the time that it took of a core, whatever else the machine did."""
    every = settings["STUDENT_MAX_STEPS"] // 20
    lines = [f"{name}={value}\n" for name, value in {**settings, "STUDENT_SAVE_STEPS": every}.items()]
    profiles = place.root / "conf" / "profiles"
    short = (profiles / f"{PROFILE}.env").read_text("utf-8")
    (profiles / f"{LONG}.env").write_text(short + "".join(lines), "utf-8")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(place, "--from", str(number), "--to", str(number), "--folds", "0", STUDENT_OVERWRITE="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(place: Workplace, *flags: str, **variables: str) -> None:
    done = place.pipeline(*flags, seconds=1200, **variables)
    assert done.returncode == 0, done.stdout + done.stderr


def undo(place: Workplace, stage: str, *folds: int) -> None:
    """Remove what a stage wrote for some folds, what the chain ends with, and all traces of the run that made it."""
    place.remove(*(f"model_save/{RUN}/{_OUTPUTS[stage].format(fold)}" for fold in folds), "sub/*", "logs/*.out")
    shutil.rmtree(place.models / "pipeline", ignore_errors=True)


def heartbeat(place: Workplace, stage: str, fold: int) -> dict[str, Any]:
    """What the worker of a fold has last said of itself; empty before it has said anything."""
    file = place.models / "pipeline" / "progress" / f"{stage}_fold_{fold}.json"
    document: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return document


def wait_for_checkpoint(place: Workplace, cluster: Cluster, stage: str, fold: int, seconds: float = 300) -> None:
    """Until a training has saved something, and is far from its end."""
    eventually(
        lambda: heartbeat(place, stage, fold).get("saved", 0) > 0,
        seconds,
        f"a checkpoint of {stage}, fold {fold}",
        lambda: f"{heartbeat(place, stage, fold)}\n{cluster.shown()}\n{place.logs()}",
    )
    said = heartbeat(place, stage, fold)
    assert said["done"] < 0.7 * said["total"], f"too late to disturb it: {said}"


def assert_as_undisturbed(place: Workplace, undisturbed: Workplace, cluster: Cluster, stage: str, *folds: int) -> None:
    """The disturbed models and the final submission are those of the undisturbed run, to the last bit."""
    assert place.submission.is_file(), f"{cluster.shown()}\n{place.logs()}"
    for fold in folds:
        file = f"{_WEIGHTS[stage].format(fold)}/adapter_model.safetensors"
        assert (place.models / file).read_bytes() == (undisturbed.models / file).read_bytes(), file
        ours, theirs = (_evaluations(each.models / _WEIGHTS[stage].format(fold)) for each in (place, undisturbed))
        assert ours == theirs
    assert place.submission.read_bytes() == undisturbed.submission.read_bytes()
    status = place.status()
    assert {line["artifact"]["state"] for line in status.values()} == {"complete"}, status


def _evaluations(model: Path) -> list[tuple[int, float]]:
    """Step and log loss of every evaluation on the way."""
    log = json.loads((model / "training_log.json").read_text("utf-8"))
    return [(entry["step"], entry["eval_log_loss"]) for entry in log if "eval_log_loss" in entry]


def losses(model: Path) -> list[float]:
    """The training loss as it was logged, in the order of the steps."""
    log = json.loads((model / "training_log.json").read_text("utf-8"))
    return [entry["loss"] for entry in log if "loss" in entry]


def log_of(place: Workplace, stage: str, fold: int) -> str:
    """All that the jobs of one fold printed, every start of them."""
    names = {TEACHERS: "teachers", STUDENTS: "distill"}
    return "\n".join(path.read_text("utf-8") for path in sorted(place.root.glob(f"logs/*{names[stage]}_*_{fold}.out")))
