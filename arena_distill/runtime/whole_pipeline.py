"""Every stage one after the other on this machine, without a shell: ``main.py --mode train`` and ``--mode inference``.

Each stage's worker is a process of its own, as under Slurm, so that one's memory and libraries are not another's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.runtime.artifacts import git_revision, read_manifest, write_atomically
from arena_distill.runtime.errors import ArenaError, InputError, SettingsError
from arena_distill.runtime.interruption import run_worker
from arena_distill.runtime.run_settings import RunSettings
from arena_distill.runtime.settings import PROFILE_VARIABLE, profile_value
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    EVAL,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
)

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = "tiny"
SUMMARY_FILE = "training_summary.json"

_PATHS = ("train_csv", "test_csv", "labels_csv", "truth_parquet", "output_dir")
_REPORTED = ("fold", "family", "rows", "metrics", "conversion", "evaluation", "quantization")  # of a manifest


@dataclass(frozen=True)
class Step:
    """One process."""

    name: str
    command: tuple[str, ...]  # Python file and flags


def training_steps(variables: Mapping[str, str]) -> list[Step]:
    """Steps 1 to 7; the profile ``tiny`` makes its base models first, as step 1's script does."""
    tiny = []
    if variables[PROFILE_VARIABLE] == TINY:
        flags = {
            "--texts": variables.get("TINY_TEXTS") or profile_value(TINY, "TINY_TEXTS"),
            "--families": variables.get("TINY_FAMILIES") or profile_value(TINY, "TINY_FAMILIES"),
            "--pretrain-epochs": variables.get("TINY_PRETRAIN_EPOCHS") or profile_value(TINY, "TINY_PRETRAIN_EPOCHS"),
            "--out-dir": "model_save/tiny",
        }
        words = [word for pair in flags.items() for word in pair]
        tiny = [Step("tiny checkpoints", ("scripts/make_tiny_models.py", *words))]
    stages = (POST_PRETRAIN, MAKE_FOLDS, TRAIN_TEACHERS, INFER_TEACHER_LOGITS, DISTILL_STUDENT, LORA_ENSEMBLE, QUANTIZE)
    return [*tiny, *(Step(stage.name, (stage.worker,)) for stage in stages)]


def inference_steps(submission: Path, ensemble: Path, test: str) -> list[Step]:
    """Steps 8 and 9; ``test`` is the file whose ids the submission must have, where it is known."""
    expected = ("--test-csv", test) if test else ()
    return [
        Step(INFER_TTA.name, (INFER_TTA.worker,)),
        Step(EVAL.name, ("scripts/ensemble_submissions.py", str(ensemble), str(submission), *expected)),
        Step("evaluation", ("scripts/evaluate.py", "--submission", str(ensemble))),
        Step("report", ("scripts/report.py",)),
    ]


def train_everything(settings: RunSettings) -> None:
    """Steps 1 to 7, on the sample and with models of two layers unless told otherwise; then ``training_summary.json``.

    Raises:
        SettingsError, InputError, ArenaError: a stage stopped; it has said why. What was finished before stays.
    """
    variables, started = _variables(settings), time.time()
    seconds = _run(training_steps(variables), variables)
    path = settings.output_dir / f"{settings.run}{'_' if settings.run else ''}{SUMMARY_FILE}"
    summary = {
        "profile": variables[PROFILE_VARIABLE],
        "run": settings.run,
        "git_revision": git_revision(),
        "seconds": round(time.time() - started, 1),
        "stages": seconds,
        "outputs": list(_outputs(settings.model_save)),
    }
    write_atomically(path, json.dumps(summary, indent=1) + "\n")
    print(f"{path}: written")


def infer_everything(settings: RunSettings) -> None:
    """Steps 8 and 9: the test file's probabilities, and how good they are.

    Raises:
        SettingsError, InputError, ArenaError: a stage stopped; it has said why.
    """
    prefix = f"{settings.run}_" if settings.run else ""
    sub = settings.output_dir.resolve() / "sub"
    submission, ensemble = (sub / f"{prefix}final_{name}.csv" for name in ("submission", "ensemble"))
    variables = _variables(settings)
    _run(inference_steps(submission, ensemble, variables.get("TEST_CSV", "")), variables)


def _variables(settings: RunSettings) -> dict[str, str]:
    """The environment of every stage: what the command line says, in the form of variables."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set if name != "mode"}
    words = {name.upper(): _word(name, value) for name, value in given.items() if value is not None}
    variables = {**os.environ, **words, "OUTPUT_DIR": str(settings.output_dir.resolve())}
    if not variables.get(PROFILE_VARIABLE):
        variables |= {PROFILE_VARIABLE: TINY, "CUDA_VISIBLE_DEVICES": ""}  # in small: on the CPU
    if given.get("train_csv", "") not in ("", profile_value(variables[PROFILE_VARIABLE], "TRAIN_CSV")):
        variables.setdefault("EXTRA_DATA", "none")  # the profile's extra votes belong to its own data
    return variables


def _word(name: str, value: Any) -> str:
    if name in _PATHS and str(value) not in ("", "none"):
        return str(Path(value).resolve())  # the stages run in the repository
    return str(int(value)) if isinstance(value, bool) else str(value)


def _run(steps: Sequence[Step], variables: Mapping[str, str]) -> list[dict[str, Any]]:
    done = []
    environment = dict(variables)
    for number, step in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] {step.name}: python {' '.join(step.command)}", flush=True)
        started = time.time()
        code = run_worker([sys.executable, *step.command], cwd=REPOSITORY, env=environment)
        done.append({"stage": step.name, "command": list(step.command), "seconds": round(time.time() - started, 1)})
        if code:
            kind = {2: SettingsError, 3: InputError}.get(code, ArenaError)
            raise kind(
                f"{step.name} stopped with exit code {code}, for the reason above -> mend it and give the same "
                "command: what is finished stays, and it goes on from there"
            )
    return done


def _outputs(model_save: Path) -> list[dict[str, Any]]:
    """What the manifests of a run say, in the order in which they were finished."""
    found = []
    for directory in (*model_save.glob("*/"), *model_save.glob("teacher_logits/*/")):
        if not directory.name.startswith(".") and (manifest := read_manifest(directory)):
            said = {name: manifest[name] for name in _REPORTED if name in manifest}
            known = {name: manifest[name] for name in ("stage", "finished", "wall_seconds")}
            found.append({"directory": str(directory), **known, **said})
    return sorted(found, key=lambda entry: str(entry["finished"]))
