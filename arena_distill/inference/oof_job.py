"""Which teacher scores which fold, checked before any model is loaded. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.data.find_file import find_file
from arena_distill.data.folds import load_folds
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.runtime.artifacts import fingerprint, read_manifest, recover, require_replaceable, sha256_file
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.job import Job
from arena_distill.runtime.stages import ENSEMBLE, INFER_TEACHER_LOGITS, TRAIN_TEACHERS

STAGE = INFER_TEACHER_LOGITS.name
_RECIPE, _RECIPE_PREFIX = ("seed", "extra_data"), "teacher_"
_NO_RECIPE = ("teacher_folds", "teacher_merge", "teacher_eval_tokens", "teacher_num_workers", "teacher_save_steps")
LOGITS, PROBABILITIES, LAST_TOKEN, ROWS = "teacher_logits", "teacher_probs", "teacher_lasttok", "rows.parquet"


@dataclass(frozen=True, kw_only=True)
class OofJob(Job):
    """One teacher and the fold that it was kept from."""

    name: str  # of the teacher's family
    fold: int
    model: Path  # merged model or adapter
    bf16: bool  # compute as in training
    max_length: int
    extra_data: str  # files that it was trained on too, for the baselines
    recipe: dict[str, Any]  # settings that all folds of a family should share


@dataclass(frozen=True)
class OofPlan:
    """All of step 4."""

    train_file: Path
    inputs: dict[str, str]  # hashes of the base file and the folds file
    jobs: list[OofJob]
    families: list[str]  # every family there is, or that was asked for


def plan_oof(settings: OofSettings) -> OofPlan:
    """Find the teachers and check that each was kept from the fold it is to score.

    Raises:
        InputError: a teacher is missing, damaged, or was trained with other folds.
        SettingsError: a fold that the folds file does not have.
    """
    train_file = find_file(settings.train_csv, "train", "--train-csv")
    folds = load_folds(settings.folds_path)
    folds.check_count(settings.n_folds, settings.folds_path)
    if beyond := [fold for fold in settings.wanted_folds if fold >= folds.n_folds]:
        raise SettingsError(
            f"--infer-folds (or INFER_FOLDS): {settings.folds_path} has the folds 0 … {folds.n_folds - 1}, no fold "
            f"{beyond[0]}"
        )
    inputs = {"train_csv": sha256_file(train_file), "folds_json": sha256_file(settings.folds_path)}
    families = settings.wanted_models or find_families(settings.model_save)
    if ENSEMBLE in families:
        raise InputError(f"{settings.model_save}: a teacher is called {ENSEMBLE}, as the mean of all -> rename it")
    if not families:
        raise InputError(f"{settings.model_save}: no teachers there (NAME_fold_K or NAME_fold_K_lora) -> run step 3")
    jobs = [_job(settings, name, fold, inputs) for name in families for fold in settings.wanted_folds]
    for name in families:
        _note_mixed_recipes([job for job in jobs if job.name == name])
    return OofPlan(train_file, inputs, jobs, families)


def _note_mixed_recipes(jobs: list[OofJob]) -> None:
    """Say so if the teachers of one family were not trained alike; their labels would differ by more than the fold."""
    for job in jobs[1:]:
        recipe, first = job.recipe, jobs[0].recipe
        if other := [name for name in sorted(recipe.keys() & first.keys()) if recipe[name] != first[name]]:
            changes = ", ".join(f"{name} {first[name]} and {recipe[name]}" for name in other)
            print(f"note: folds {jobs[0].fold} and {job.fold} of {job.name} were trained differently: {changes}")


def find_families(model_save: Path) -> list[str]:
    """Names of the teachers in a directory, sorted."""
    directories = (path for path in model_save.glob("*_fold_*") if (path / "manifest.json").is_file())
    return sorted({record["family"] for path in directories if (record := _teacher_record(path))})


def _job(settings: OofSettings, name: str, fold: int, inputs: dict[str, str]) -> OofJob:
    adapter = settings.model_save / f"{name}_fold_{fold}_lora"
    model = _teacher_directory(settings, name, fold)
    if model is None:
        train = f"TEACHER_FOLDS={fold} bash {TRAIN_TEACHERS.script}"
        raise InputError(
            f"{adapter}: fold {fold} of {name} is missing -> train it ({train}), or name the finished in INFER_MODELS"
        )
    record = _teacher_record(model)
    if record is None or record["family"] != name:
        raise InputError(f"{model}: not a finished teacher -> train it again (TEACHER_FOLDS={fold})")
    if record["fold"] != fold:
        raise InputError(
            f"{model}: its manifest says fold {record['fold']} -> it may have been trained on the rows of fold {fold}; "
            "put it back under its own name"
        )
    if record["folds_json"] != inputs["folds_json"]:
        raise InputError(
            f"{model}: was trained with other folds than {settings.folds_path} -> it may have seen the rows that it "
            "would score; train it again, or give the folds that it was trained with"
        )
    if record["train_csv"] != inputs["train_csv"]:
        raise InputError(
            f"{model}: was trained on other votes than those of the data file now -> train it again, or give the file "
            "that it was trained on (TRAIN_CSV)"
        )
    _refuse_stale_copy(model, adapter, record)
    _require_whole(model)
    trained = record["all_settings"]
    max_length = settings.infer_max_seq_len or int(trained["teacher_maxlen"])
    decisive = {
        "fold": fold,
        "max_length": max_length,
        "swap": settings.infer_swap,
        "quant": settings.infer_quant if settings.infer_quant != "auto" else record["base_bits"],
        "save_lasttok": settings.infer_save_lasttok,
    }
    final = settings.logits_dir / f"{name}_fold_{fold}"
    recover(final)
    require_replaceable(final, STAGE)
    return OofJob(
        settings=decisive,
        inputs=inputs | {"teacher": record["weights"]},
        final=final,
        name=name,
        fold=fold,
        model=model,
        bf16=bool(trained["teacher_bf16"]),
        max_length=max_length,
        extra_data=str(trained["extra_data"]),
        recipe={key: value for key, value in trained.items() if key in _RECIPE or key.startswith(_RECIPE_PREFIX)}
        | dict.fromkeys(_NO_RECIPE),
    )


def current_teacher(settings: OofSettings, name: str, fold: int) -> str | None:
    """Identity of the teacher that is there now, as ``inputs["teacher"]`` of its logits; None if there is none."""
    model = _teacher_directory(settings, name, fold)
    record = _teacher_record(model) if model is not None else None
    return None if record is None else str(record["weights"])


def _teacher_directory(settings: OofSettings, name: str, fold: int) -> Path | None:
    merged, adapter = settings.model_save / f"{name}_fold_{fold}", settings.model_save / f"{name}_fold_{fold}_lora"
    for path in (merged, adapter):
        recover(path)
    candidates = [adapter, merged] if settings.infer_prefer_lora else [merged, adapter]
    return next((path for path in candidates if path.is_dir()), None)


def _teacher_record(model: Path) -> dict[str, Any] | None:
    """What a teacher's manifest says of it; None for a directory that is no teacher."""
    manifest = read_manifest(model)
    if manifest is None:
        return None
    if manifest["stage"] == TRAIN_TEACHERS.name:
        weights = fingerprint({}, manifest["outputs"])
        inputs = {name: manifest["inputs"][name] for name in ("folds_json", "train_csv")}
        return {"base_bits": "none", **manifest, **inputs, "weights": weights}
    if "family" in (manifest.get("verified") or {}):  # a merged copy: the same teacher, in 16 bits or more
        return {**manifest["verified"], "weights": manifest["verified"]["adapter_outputs"], "base_bits": "none"}
    return None


def _refuse_stale_copy(model: Path, adapter: Path, record: dict[str, Any]) -> None:
    manifest = read_manifest(adapter) if adapter.is_dir() and model != adapter else None
    if manifest is not None and fingerprint({}, manifest["outputs"]) != record.get("adapter_outputs"):
        raise InputError(
            f"{model}: is a merged copy of an earlier {adapter.name} -> merge again ({TRAIN_TEACHERS.script} with "
            "TEACHER_MERGE=1), delete it, or set INFER_PREFER_LORA=1"
        )


def _require_whole(model: Path) -> None:
    manifest = read_manifest(model) or {}
    for name, size in manifest.get("output_bytes", {}).items():
        file = model / name
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(f"{file}: missing or cut off -> train or merge this teacher again")
