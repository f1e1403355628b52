"""Step 4 as a whole: every fold scored by its own teacher, one validated table, its scores beside the baselines."""

from __future__ import annotations

import io
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arena_distill.data.folds import Folds, load_folds
from arena_distill.data.loading import Loaded, load_labelled
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import softmax
from arena_distill.inference.oof_job import ROWS, STAGE, OofJob, OofPlan, plan_oof
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.oof_table import LOGIT_COLUMNS, OofFamily, build_table, manifest_path, read_oof_table
from arena_distill.runtime.artifacts import (
    fingerprint,
    locked,
    read_manifest,
    read_manifest_file,
    require_writable,
    sha256_file,
    write_atomically,
    write_manifest,
)
from arena_distill.runtime.errors import InputError

_DATA_INPUTS = ("train_csv", "folds_json")


def infer_teachers(settings: OofSettings) -> None:
    """Score what is missing, and make the table once every fold is there.

    Raises:
        ArenaError: bad settings or input; folds finished before stay.
    """
    plan = plan_oof(settings)
    require_writable(settings.table_path)
    again = settings.force or settings.infer_force_regen
    waiting = []
    for job in plan.jobs:
        if again or not job.is_up_to_date():
            waiting.append(job)
        else:
            print(f"{job.final}: up to date (INFER_FORCE_REGEN=1 scores it again)")
    loaded: Loaded | None = None
    folds = load_folds(settings.folds_path)
    if waiting:
        # Not before: importing torch takes longer than finding that there is nothing to do.
        from arena_distill.models.quiet import quiet_libraries

        quiet_libraries()
        loaded = _load(settings, plan, folds)
        for job in waiting:
            _score(settings, job, loaded.rows, folds)
    _make_table(settings, plan, folds, loaded)


def _load(settings: OofSettings, plan: OofPlan, folds: Folds) -> Loaded:
    loaded = load_labelled(plan.train_file)
    folds.check(loaded.rows, settings.folds_path)
    return loaded


def _score(settings: OofSettings, job: OofJob, rows: Rows, folds: Folds) -> None:
    from arena_distill.inference.oof import score_fold

    print(f"{job.final}: scoring fold {job.fold} with {job.model}")
    try:
        whole = score_fold(settings, job, rows, folds)
    except KeyboardInterrupt:
        print(f"{job.final}: interrupted; the same command goes on where it stopped")
        raise
    if whole:
        manifest = read_manifest(job.final) or {}
        metrics = manifest["metrics"]
        print(
            f"{job.final}: log loss {metrics['held_out']['log_loss']:.4f} on the {manifest['rows']['held_out']:,} rows "
            f"of fold {job.fold}, swap gap {metrics['swap_gap']:.3f}"
        )


def _make_table(settings: OofSettings, plan: OofPlan, folds: Folds, loaded: Loaded | None) -> None:
    folds_wanted = range(folds.n_folds)
    directories = {
        name: [settings.logits_dir / f"{name}_fold_{fold}" for fold in folds_wanted] for name in plan.families
    }
    inputs = {"train_csv": sha256_file(plan.train_file), "folds_json": sha256_file(settings.folds_path)}
    wanted = {job.final: job.fingerprint for job in plan.jobs}
    absent = []
    for path in (path for paths in directories.values() for path in paths):
        manifest = read_manifest(path)
        current = manifest is not None and all(manifest["inputs"].get(name) == inputs[name] for name in _DATA_INPUTS)
        if manifest and current and wanted.get(path, manifest["fingerprint"]) == manifest["fingerprint"]:
            inputs[path.name] = fingerprint({}, manifest["outputs"])
        else:
            absent.append(path.name)
    if absent:
        print(f"{settings.table_path}: waits for {', '.join(absent)}")
        return
    table_settings = {"families": plan.families}
    with locked(settings.table_path, wait_seconds=600):
        recorded = read_manifest_file(manifest_path(settings.table_path))
        expected = fingerprint(table_settings, inputs)
        if recorded and recorded["fingerprint"] == expected and _is_whole(settings.table_path, recorded):
            print(f"{settings.table_path}: up to date; {_figures(recorded)}")
            return
        started = time.time()
        rows = (loaded or _load(settings, plan, folds)).rows
        families = {name: _family(paths, folds) for name, paths in directories.items()}
        buffer = io.BytesIO()
        pq.write_table(build_table(families, rows, folds), buffer)
        write_atomically(settings.table_path, buffer.getvalue())
        write = partial(
            write_manifest,
            settings.table_path,
            stage=STAGE,
            settings=table_settings,
            inputs=inputs,
            started=started,
            path=manifest_path(settings.table_path),
        )
        write()
        report = report_table(settings, plan.train_file, rows, folds)
        write(details={"rows": len(rows), "metrics": report})


def report_table(
    settings: OofSettings, train_file: Path, rows: Rows, folds: Folds
) -> dict[str, dict[str, float | int]]:
    """Read the table back, validate it, and print its scores beside the baselines and the best possible.

    Returns:
        Scores by name.
    """
    from arena_distill.evaluation.scoreboard import TRUTH_NAME, format_table, oof_baselines, read_truth, scoreboard

    families = read_oof_table(settings.table_path, rows, folds)
    entries: dict[str, np.ndarray] = {}
    if settings.infer_baselines:
        entries |= oof_baselines(rows, [load_labelled(path).rows for path in settings.extra_paths], folds)
    entries |= {name: family.probabilities for name, family in families.items()}
    truth = Path(settings.truth_parquet) if settings.truth_parquet else train_file.with_name("truth.parquet")
    if settings.truth_parquet or truth.is_file():
        entries[TRUTH_NAME] = read_truth(truth, rows["id"].to_pylist())
    scores = scoreboard(entries, targets(rows))
    print(f"{settings.table_path}: valid, {len(rows):,} rows each of {', '.join(families)}")
    print(format_table(scores, "Out-of-fold rows, each judged by models that never saw it"))
    return {name: score.as_dict() for name, score in scores}


def _family(paths: list[Path], folds: Folds) -> OofFamily:
    logits = np.full((len(folds.fold), 3), np.nan, dtype=np.float32)
    gap = np.full(len(folds.fold), np.nan)
    for fold, path in enumerate(paths):
        try:
            part = pq.ParquetFile(path / ROWS).read()
            index = part["base_idx"].to_numpy()
            if not np.array_equal(np.sort(index), np.flatnonzero(folds.fold == fold)):
                raise InputError(f"{path}: does not hold the rows of fold {fold} -> score it again")
            logits[index] = np.column_stack([part[column].to_numpy() for column in LOGIT_COLUMNS])
            gap[index] = part["swap_gap"].to_numpy()
        except (OSError, pa.ArrowException, KeyError) as error:
            raise InputError(f"{path / ROWS}: cannot be read ({error}) -> set INFER_FORCE_REGEN=1") from error
    return OofFamily(logits, softmax(logits), gap)


def _is_whole(table: Path, recorded: dict[str, object]) -> bool:
    outputs = recorded["outputs"]
    return (
        isinstance(outputs, dict)
        and table.is_file()
        and outputs.get(table.name) == sha256_file(table)
        and bool(recorded.get("metrics"))
    )


def _figures(recorded: dict[str, object]) -> str:
    metrics = recorded["metrics"]
    assert isinstance(metrics, dict)
    return "out-of-fold log loss: " + ", ".join(f"{name} {scores['log_loss']:.4f}" for name, scores in metrics.items())
