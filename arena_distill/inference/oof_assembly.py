"""From the folds' logits to the out-of-fold table: which families are complete, the table, and its scores."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arena_distill.data.folds import Folds
from arena_distill.data.loading import load_labelled
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import softmax
from arena_distill.inference.oof_job import ROWS, STAGE, OofPlan, current_teacher
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.oof_table import LOGIT_COLUMNS, OofFamily, build_table, manifest_path, read_oof_table
from arena_distill.runtime.artifacts import (
    fingerprint,
    locked,
    partial_directory,
    read_manifest,
    read_manifest_file,
    sha256_file,
    write_manifest,
)
from arena_distill.runtime.errors import DataError, InputError
from arena_distill.runtime.interruption import checkpointing


@dataclass(frozen=True)
class FoldLogits:
    """One fold's finished logits."""

    path: Path
    manifest: dict[str, Any]


def make_table(settings: OofSettings, plan: OofPlan, folds: Folds, rows: Rows | None) -> None:
    """Write the table of every family whose folds are all there, if it is not there already.

    The families asked for must be complete, else the table waits for them; others are taken along if they are.

    Args:
        settings: of the stage.
        plan: what was asked for.
        folds: which fold holds out which row.
        rows: the base rows, if they are loaded already.
    """
    found = {name: _fold_logits(settings, plan, folds, name) for name in _family_names(settings, plan)}
    complete = {name: parts for name, parts in found.items() if None not in parts}
    waits = [
        f"{name}_fold_{fold}"
        for name in plan.families
        for fold, part in enumerate(found[name])
        if part is None
    ]  # fmt: skip
    if waits:
        print(f"{settings.table_path}: waits for {', '.join(waits)}")
        return
    if left_out := sorted(found.keys() - complete.keys()):
        print(f"note: {', '.join(left_out)} left out of the table: not all folds are scored with this data")
    inputs = plan.inputs | {
        part.path.name: fingerprint({}, part.manifest["outputs"])
        for parts in complete.values()
        for part in parts
        if part is not None
    }
    table, decisive = settings.table_path, {"families": sorted(complete)}
    with locked(table, wait_seconds=600):
        recorded = read_manifest_file(manifest_path(table))
        if recorded and recorded["fingerprint"] == fingerprint(decisive, inputs) and _is_whole(table, recorded):
            print(f"{table}: up to date; {_figures(recorded)}")
            return
        started = time.time()
        if rows is None:
            rows = load_labelled(plan.train_file).rows
            folds.check(rows, settings.folds_path)
        families = {name: _family(complete[name], folds) for name in sorted(complete)}
        # Built and validated apart: a reader sees the old table or a valid new one.
        partial = partial_directory(table)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fresh = partial / table.name
        pq.write_table(build_table(families, rows, folds), fresh)
        _write_manifest(fresh, decisive, inputs, started, {})
        extras = _extra_rows(settings, complete)
        report = report_table(settings, fresh, plan.train_file, rows, extras, folds)
        _write_manifest(fresh, decisive, inputs, started, {"rows": len(rows), "metrics": report})
        with checkpointing():
            manifest_path(fresh).replace(manifest_path(table))
            fresh.replace(table)
            partial.rmdir()
        print(f"{table}: written")


def report_table(
    settings: OofSettings, table: Path, train_file: Path, rows: Rows, extras: list[Rows], folds: Folds
) -> dict[str, dict[str, float | int]]:
    """Read the table back, validate it, and print its scores beside the baselines and the best possible.

    Returns:
        Scores by name.
    """
    from arena_distill.evaluation.scoreboard import TRUTH_NAME, format_table, oof_baselines, read_truth, scoreboard

    families = read_oof_table(table, rows, folds)
    print(f"{table.name}: valid, {len(rows):,} rows each of {', '.join(families)}")
    entries: dict[str, np.ndarray] = oof_baselines(rows, extras, folds) if settings.infer_baselines else {}
    entries |= {name: family.probabilities for name, family in families.items()}
    truth = truth_file(settings, train_file)
    if truth.is_file():
        try:
            entries[TRUTH_NAME] = read_truth(truth, rows["id"].to_pylist())
        except DataError as error:
            if settings.truth_parquet:
                raise
            print(f"note: no Bayes line, {error.file} is of other rows: {error.problem}")
    scores = scoreboard(entries, targets(rows))
    print(format_table(scores, "Out-of-fold rows, each judged by models that never saw it"))
    return {name: score.as_dict() for name, score in scores}


def truth_file(settings: OofSettings, train_file: Path) -> Path:
    """Where true probabilities would be."""
    return Path(settings.truth_parquet) if settings.truth_parquet else train_file.with_name("truth.parquet")


def _family_names(settings: OofSettings, plan: OofPlan) -> list[str]:
    manifests = (read_manifest(path) for path in settings.logits_dir.glob("*_fold_*") if path.is_dir())
    scored = {m["family"] for m in manifests if m is not None and m["stage"] == STAGE}
    return sorted(scored | set(plan.families))


def _fold_logits(settings: OofSettings, plan: OofPlan, folds: Folds, name: str) -> list[FoldLogits | None]:
    """By fold: its logits, or None where they are missing or were made of other data, settings or teachers."""
    wanted = {job.final: job.fingerprint for job in plan.jobs}
    alike = next((_shared(job.settings) for job in plan.jobs if job.name == name), None)
    out: list[FoldLogits | None] = []
    for fold in range(folds.n_folds):
        path = settings.logits_dir / f"{name}_fold_{fold}"
        manifest = read_manifest(path)
        if manifest is not None:
            same_data = all(manifest["inputs"].get(key) == value for key, value in plan.inputs.items())
            teacher = current_teacher(settings, name, fold)  # gone: what it said still counts
            same_teacher = teacher in (None, manifest["inputs"]["teacher"])
            as_wanted = wanted.get(path, manifest["fingerprint"]) == manifest["fingerprint"]
            alike = alike or _shared(manifest["settings"])
            if same_data and same_teacher and as_wanted and _shared(manifest["settings"]) == alike:
                out.append(FoldLogits(path, manifest))
                continue
        out.append(None)
    return out


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of step 4 that all folds of a family must share."""
    return {name: settings.get(name) for name in ("max_length", "swap")}


def _family(parts: list[FoldLogits | None], folds: Folds) -> OofFamily:
    logits = np.full((len(folds.fold), 3), np.nan, dtype=np.float32)
    gap = np.full(len(folds.fold), np.nan)
    for fold, part in enumerate(parts):
        assert part is not None
        file = part.path / ROWS
        try:
            if sha256_file(file) != part.manifest["outputs"][ROWS]:
                raise InputError(f"{file}: was changed since it was written -> set INFER_FORCE_REGEN=1")
            table = pq.ParquetFile(file).read()
            index = table["base_idx"].to_numpy()
            if not np.array_equal(np.sort(index), np.flatnonzero(folds.fold == fold)):
                raise InputError(f"{file}: does not hold the rows of fold {fold} -> set INFER_FORCE_REGEN=1")
            logits[index] = np.column_stack([table[column].to_numpy() for column in LOGIT_COLUMNS])
            gap[index] = table["swap_gap"].to_numpy()
        except (OSError, pa.ArrowException, KeyError) as error:
            raise InputError(f"{file}: cannot be read ({error}) -> set INFER_FORCE_REGEN=1") from error
    return OofFamily(logits, softmax(logits), gap)


def _extra_rows(settings: OofSettings, complete: dict[str, list[FoldLogits | None]]) -> list[Rows]:
    """The extra rows that the teachers learned from, so that the baselines learn from them too."""
    if not settings.infer_baselines:
        return []
    first = next(part for parts in complete.values() for part in parts if part is not None)
    recorded = settings.model_copy(update={"extra_data": first.manifest["extra_data"]})
    if missing := [str(path) for path in recorded.extra_paths if not path.is_file()]:
        print(f"note: {', '.join(missing)} not found, so the baselines learn from the base rows alone")
        return []
    return [load_labelled(path).rows for path in recorded.extra_paths]


def _write_manifest(
    table: Path, decisive: dict[str, Any], inputs: dict[str, str], started: float, details: dict[str, Any]
) -> None:
    write_manifest(
        table,
        stage=STAGE,
        settings=decisive,
        inputs=inputs,
        started=started,
        path=manifest_path(table),
        details=details,
    )


def _is_whole(table: Path, recorded: dict[str, Any]) -> bool:
    return table.is_file() and recorded["outputs"].get(table.name) == sha256_file(table) and "metrics" in recorded


def _figures(recorded: dict[str, Any]) -> str:
    scores = recorded["metrics"].items()
    return "out-of-fold log loss: " + ", ".join(f"{name} {score['log_loss']:.4f}" for name, score in scores)
