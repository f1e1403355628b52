"""One table of models: every evaluation prints the baselines beside the model, and the best possible score if known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from arena_distill.data.fold_rows import fold_rows
from arena_distill.data.folds import Folds
from arena_distill.data.records import Rows
from arena_distill.evaluation.metrics import Scores, score
from arena_distill.runtime.errors import DataError

TRUTH_NAME = "Bayes optimal"
TRUTH_COLUMNS = ("p_model_a", "p_model_b", "p_tie")

COLUMNS = (("log_loss", "log loss"), ("accuracy", "accuracy"), ("ece", "ECE"), ("brier", "Brier"))


def scoreboard(entries: Mapping[str, ArrayLike], targets: ArrayLike) -> list[tuple[str, Scores]]:
    """Score each entry on the same rows.

    Args:
        entries: display name to probabilities ``[N, 3]``; the order is kept.
        targets: ``[N, 3]``, hard or soft.

    Raises:
        ValueError: an entry cannot be scored (see ``metrics``); names the entry.
    """
    table = []
    for name, probabilities in entries.items():
        try:
            table.append((name, score(probabilities, targets)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return table


def held_out_scores(
    train_rows: Rows,
    test_rows: Rows,
    targets: np.ndarray,
    named_probabilities: Mapping[str, ArrayLike],
    truth: ArrayLike | None = None,
) -> list[tuple[str, Scores]]:
    """Score the baselines, the given predictions and the true probabilities on rows that nothing was fitted on.

    Args:
        train_rows: labelled canonical rows; the baselines are fitted on them.
        test_rows: canonical rows, held out; their own labels are not looked at.
        targets: ``[N, 3]`` for the test rows.
        named_probabilities: display name to ``[N, 3]`` in the order of the test rows.
        truth: the probabilities ``[N, 3]`` that the votes were drawn from, where known; no model can beat them but
            by luck of the draw.

    Returns:
        ``(name, scores)``: the baselines, the predictions in their order, then ``Bayes optimal``.

    Raises:
        ValueError: a shape does not agree, there are no rows, or a prediction has the name of a baseline.
    """
    from arena_distill.evaluation.baselines import fit_baselines

    entries: dict[str, ArrayLike] = {
        name: model.predict(test_rows) for name, model in fit_baselines(train_rows).items()
    }
    taken = (entries.keys() | {TRUTH_NAME}) & named_probabilities.keys()
    if taken:
        raise ValueError(f"{sorted(taken)[0]!r} is the name of a baseline; give the prediction another name")
    entries |= named_probabilities
    if truth is not None:
        entries[TRUTH_NAME] = truth
    return scoreboard(entries, targets)


def oof_baselines(rows: Rows, extras: Sequence[Rows], folds: Folds) -> dict[str, np.ndarray]:
    """Each baseline's probabilities ``[N, 3]`` for every base row, fitted on the same rows as that row's teacher."""
    from arena_distill.evaluation.baselines import fit_baselines

    out: dict[str, np.ndarray] = {}
    for fold in range(folds.n_folds):
        parts = fold_rows(rows, extras, folds, fold)
        for name, model in fit_baselines(parts.train).items():
            out.setdefault(name, np.zeros((len(rows), 3)))[parts.val["base_idx"].to_numpy()] = model.predict(parts.val)
    return out


def format_table(
    entries: Sequence[tuple[str, Scores | Mapping[str, float | None]]], title: str = "Held-out scores"
) -> str:
    """The table as aligned plain text, ready to print.

    Args:
        entries: name and scores in the order to show. A mapping may hold only some of the metrics (keys as the
            fields of ``Scores``); the others show as ``-``.
        title: heads the table, followed by the number of rows where that is known and the same for all.
    """
    values = [(name, s.as_dict() if isinstance(s, Scores) else s) for name, s in entries]
    lines = [["model", *(heading for _, heading in COLUMNS)]]
    lines += [[name, *(_cell(scores.get(key)) for key, _ in COLUMNS)] for name, scores in values]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    counts = {scores.get("rows") for _, scores in values}
    count = counts.pop() if len(counts) == 1 else None
    heading = title if count is None else f"{title} ({int(count):,} rows)"
    return "\n".join([heading, *(_aligned(line, widths) for line in lines)])


def read_truth(path: str | PathLike[str], ids: Sequence[str]) -> np.ndarray:
    """True vote probabilities, float64 ``[N, 3]`` in the order of ``ids``.

    Args:
        path: Parquet file with columns ``id``, ``p_model_a``, ``p_model_b``, ``p_tie``; it may hold more rows.
        ids: the test rows' ids.

    Raises:
        DataError: the file cannot be read, lacks a column or an id, repeats an id, or holds something that is not a
            probability.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = f"expected Parquet with the columns id, {', '.join(TRUTH_COLUMNS)}"
    try:
        table = pq.ParquetFile(Path(path)).read()
        missing = [name for name in ("id", *TRUTH_COLUMNS) if name not in table.column_names]
        if missing:
            raise DataError("the column is missing", file=path, column=missing[0], hint=hint)
        names = table["id"].cast(pa.string()).to_pylist()
        p = np.column_stack([table[name].cast(pa.float64()).to_numpy() for name in TRUTH_COLUMNS])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {error}", file=path, hint=hint) from error
    if len(set(names)) != len(names):
        raise DataError("holds an id twice", file=path, column="id", hint="ids must be unique")
    row_of = {name: row for row, name in enumerate(names)}
    absent = [name for name in ids if name not in row_of]
    if absent:
        problem = f"{len(absent)} of {len(ids)} ids are missing, the first {absent[0][:80]!r}"
        raise DataError(problem, file=path, column="id", hint="give the truth of this test file")
    good = np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) <= 1e-6)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        problem = f"{p[row].tolist()} are not probabilities that sum to 1"
        raise DataError(problem, file=path, row=row + 1, hint="write the file again")
    return p[[row_of[name] for name in ids]]


def _cell(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"


def _aligned(cells: list[str], widths: list[int]) -> str:
    name, *numbers = cells
    return "  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))])
