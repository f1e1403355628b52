"""``FILE.logits.parquet`` beside a submission of step 8: what the judge said of every row in every view, read back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arena_distill.data.prompts import View
from arena_distill.data.records import CLASSES
from arena_distill.evaluation.calibration import view_probabilities
from arena_distill.evaluation.evaluation_settings import LOGITS_SUFFIX
from arena_distill.evaluation.submission import read_submission
from arena_distill.evaluation.submission_ensemble import manifest_path
from arena_distill.runtime.artifacts import read_manifest_file
from arena_distill.runtime.errors import DataError, InputError

LOGIT_COLUMNS = tuple(f"logit_{name}" for name in CLASSES)
COLUMNS = ("id", "max_length", "swapped", *LOGIT_COLUMNS)

TOLERANCE = 1e-6
"""How far the submission may be from the mean over views of ``softmax(logits / T)``: float32 rounding."""

_ADVICE = "run step 8 again"


@dataclass(frozen=True)
class ViewLogits:
    """Raw logits of V views of the same N rows, with the temperature that the submission was made with."""

    path: Path
    submission: Path
    views: tuple[View, ...]
    logits: np.ndarray  # float64 [V, N, 3], swapped views put back to A, B, tie
    temperature: float


def submission_beside(logits: Path) -> Path:
    """The submission that was made of ``FILE.logits.parquet``: ``FILE.csv``.

    Raises:
        InputError: the name is another.
    """
    if not logits.name.endswith(LOGITS_SUFFIX):
        raise InputError(f"{logits}: is not named FILE{LOGITS_SUFFIX} -> give the file that step 8 wrote")
    return logits.with_name(logits.name.removesuffix(LOGITS_SUFFIX) + ".csv")


def read_view_logits(path: Path, ids: Sequence[str]) -> ViewLogits:
    """Read the logits of a submission, and prove that they are what it was made of.

    Args:
        path: ``FILE.logits.parquet``, beside ``FILE.csv`` and ``FILE.manifest.json``.
        ids: of the test rows.

    Raises:
        DataError: the file cannot be read, lacks a column, a view lacks a row, has one twice or one that is no test
            row, or a logit is not finite; or the submission cannot be used.
        InputError: there is no manifest or no temperature in it, or the submission was made of other logits.
    """
    views, logits = _read(path, ids)
    submission, temperature = submission_beside(path), read_temperature(path)
    _, written = read_submission(submission, ids)
    gap = np.abs(view_probabilities(logits, temperature) - written).max(axis=1)
    if (gap > TOLERANCE).any():
        worst = int(gap.argmax())
        raise InputError(
            f"{submission}: is not what {path} gives at the temperature {temperature:g}: id {ids[worst][:80]!r} is "
            f"{gap[worst]:.2g} away; one of them is of another run -> {_ADVICE}, or say EVALUATION_LOGITS=none"
        )
    return ViewLogits(path, submission, views, logits, temperature)


def read_temperature(path: Path) -> float:
    """What the logits ``FILE.logits.parquet`` were divided by, as ``FILE.manifest.json`` says.

    Raises:
        InputError: there is no manifest, or no finite positive temperature in it.
    """
    manifest = manifest_path(submission_beside(path))
    temperature = (read_manifest_file(manifest) or {}).get("temperature")
    if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 < temperature < math.inf:
        raise InputError(f"{manifest}: must give the temperature of {path}, not {temperature!r:.40} -> {_ADVICE}")
    return float(temperature)


def _read(path: Path, ids: Sequence[str]) -> tuple[tuple[View, ...], np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = f"expected Parquet with the columns {', '.join(COLUMNS)}; {_ADVICE}"
    try:
        table = pq.ParquetFile(path).read()
        for name in COLUMNS:
            if name not in table.column_names:
                raise DataError("the column is missing", file=path, column=name, hint=hint)
            if table[name].null_count:
                raise DataError("holds an empty value", file=path, column=name, hint=hint)
        names = table["id"].cast(pa.string())
        lengths = table["max_length"].cast(pa.int64()).to_numpy()
        swapped = table["swapped"].cast(pa.bool_()).to_numpy()
        values = np.column_stack([table[name].cast(pa.float64()).to_numpy() for name in LOGIT_COLUMNS])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {error}", file=path, hint=hint) from error
    if not len(values):
        raise DataError("there are no rows", file=path, hint=_ADVICE)
    if not (finite := np.isfinite(values).all(axis=1)).all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(f"{values[row].tolist()} are not finite logits", file=path, row=row + 1, hint=_ADVICE)
    place = _places(path, names, ids)
    order = dict.fromkeys(zip(lengths.tolist(), swapped.tolist(), strict=True))  # as the file has them
    views = tuple(View(length, swap) for length, swap in order)
    logits = np.empty((len(views), len(ids), len(CLASSES)))
    for number, view in enumerate(views):
        rows = np.flatnonzero((lengths == view.max_length) & (swapped == view.swap))
        _refuse_incomplete(path, view, rows, place, ids)
        logits[number, place[rows]] = values[rows]
    return views, logits


def _places(path: Path, names: Any, ids: Sequence[str]) -> np.ndarray:
    """Number of the test row of each line, int64 ``[lines]``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    place = pc.index_in(names, pa.array(ids, pa.string()))
    if place.null_count:
        row = place.to_pylist().index(None)
        problem = f"{place.null_count} lines are of no test row, the first has the id {names[row].as_py()[:80]!r}"
        raise DataError(problem, file=path, row=row + 1, column="id", hint="give the test file that it predicts")
    return np.asarray(place.to_numpy(), dtype=np.int64)


def _refuse_incomplete(path: Path, view: View, rows: np.ndarray, place: np.ndarray, ids: Sequence[str]) -> None:
    times = np.bincount(place[rows], minlength=len(ids))
    name = f"the view of length {view.max_length}{', swapped,' if view.swap else ''}"
    if (times > 1).any():
        twice = int(np.flatnonzero(times > 1)[0])
        line = int(rows[place[rows] == twice][1])
        raise DataError(f"{name} has the id {ids[twice][:80]!r} twice", file=path, row=line + 1, hint=_ADVICE)
    if (times == 0).any():
        absent = np.flatnonzero(times == 0)
        problem = f"{name} lacks {len(absent)} of {len(ids)} ids, the first {ids[int(absent[0])][:80]!r}"
        raise DataError(problem, file=path, column="id", hint=_ADVICE)
