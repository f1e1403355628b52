"""The data that a run read: paths, hashes, row counts, and whether the files are still the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from arena_distill.report.document import DataFile
from arena_distill.report.figures import Figure
from arena_distill.report.inventory import Inventory, Output
from arena_distill.report.run_files import JsonFile, RunFiles
from arena_distill.runtime.artifacts import sha256_file

State = Literal["unchanged", "changed", "not there", "not known"]

_ROLES = {
    "train_csv": "training votes",
    "extra_data": "more training votes",
    "ut_data": "post-pretraining data",
    "folds_json": "folds",
    "calib_csv": "texts to calibrate GPTQ on",
    "test_csv": "test rows",
    "labels_csv": "votes on the test rows",
    "truth_parquet": "true probabilities of the test rows",
}


def data_files(found: Inventory, files: RunFiles) -> list[DataFile]:
    """Every file and version of it, once, in the order of their roles."""
    seen: dict[tuple[str, str], DataFile] = {}
    for output in found.outputs():
        for key, digest in (output.manifest.get("inputs") or {}).items():
            role, number = _role(key)
            if role in _ROLES and isinstance(digest, str):
                known = seen.get((_ROLES[role], digest))
                if known is None or not known.path:
                    seen[_ROLES[role], digest] = _data_file(output, key, role, number, found, files)
    order = list(_ROLES.values())
    return sorted(seen.values(), key=lambda one: order.index(one.role))


def _role(key: str) -> tuple[str, int]:
    name, _, number = key.rpartition("_")
    return (name, int(number)) if number.isdigit() else (key, 0)


def _data_file(output: Output, key: str, role: str, number: int, found: Inventory, files: RunFiles) -> DataFile:
    digest = output.manifest.needed("inputs", key)
    path = _path(output, role, number, digest.value, found, files)
    rows, notes = _counts(path, found)
    return DataFile(_ROLES[role], path, digest, _state(path, digest.value, files), rows, notes)


def _path(output: Output, role: str, number: int, digest: str, found: Inventory, files: RunFiles) -> str:
    """Where the file was, if any manifest or the evaluation says so."""
    given = [part.strip() for part in str(output.manifest.get("all_settings", role) or "").split(",")]
    if role == "folds_json" and found.folds is not None and found.folds.manifest.get("folds_json_sha256") == digest:
        beside = (
            files.output_dir / "data" / "processed_data" / str(found.folds.manifest.get("all_settings", "run") or "")
        )
        return files.name(beside / str(found.folds.manifest.get("folds_json")))
    if len(given) > number and given[number] not in ("", "none"):
        return given[number]
    predicted = output.manifest.get("files")
    if role == "test_csv" and isinstance(predicted, list) and len(predicted) == 1:
        return str(predicted[0].get("file") or "")
    for name, known in ((found.evaluation.get("files") or {}) if found.evaluation else {}).items():
        if known == digest:
            return str(name)
    return ""


def _state(path: str, digest: str, files: RunFiles) -> State:
    if not path:
        return "not known"
    file = files.path(path)
    if not file.is_file():
        return "not there"
    return "unchanged" if sha256_file(file) == digest else "changed"


def _counts(path: str, found: Inventory) -> tuple[Figure | None, tuple[str, ...]]:
    """Rows that were used of a file, and what loading counted."""
    for manifest, keys in _summaries(found):
        if path and manifest.get(*keys, "file") == path:
            said = {**(manifest.get(*keys, "dropped") or {}), **(manifest.get(*keys, "repaired") or {})}
            return manifest.number(*keys, "rows_used"), tuple(f"{count:,} {what}" for what, count in said.items())
    evaluation = found.evaluation
    if evaluation is not None and path and path == evaluation.get("test"):
        prompts = evaluation.get("prompts")
        return evaluation.number("rows"), (f"{prompts:,} prompts",) if prompts else ()
    return None, ()


def _summaries(found: Inventory) -> Iterator[tuple[JsonFile, tuple[Any, ...]]]:
    for output in found.outputs():
        for key in ("loading", "files"):
            entries = output.manifest.get(key)
            for k in range(len(entries) if isinstance(entries, list) else 0):
                yield output.manifest, (key, k)
