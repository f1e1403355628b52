"""Which rows a fold trains on and which it holds out. The leak rule for extra data lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from arena_distill.data.folds import Folds
from arena_distill.data.merging import merge, shares_prompt
from arena_distill.data.records import Rows
from arena_distill.runtime.errors import DataError, SettingsError


@dataclass(frozen=True)
class FoldRows:
    """The two sides of one fold; no normalised prompt stands on both."""

    train: Rows  # base rows of the other folds by base_idx, then extra rows (base_idx -1)
    val: Rows  # base rows of this fold by base_idx
    held_out_extra: int  # extra rows left out of train, because their prompt is in val


def fold_rows(base: Rows, extras: Sequence[Rows], folds: Folds, fold: int) -> FoldRows:
    """Divide the rows of one fold.

    Args:
        base: all base rows in ``base_idx`` order, those that ``folds`` was made of.
        extras: rows of each extra file; they are only ever trained on.
        folds: which fold holds out which base row.
        fold: number of the fold, from 0.

    Raises:
        SettingsError: there is no such fold.
        DataError: the folds are of other data or keep a prompt on both sides, or one side has no base rows.
    """
    if not 0 <= fold < folds.n_folds:
        raise SettingsError(f"there is no fold {fold}: the folds are numbered 0 … {folds.n_folds - 1}")
    file = Path(base["source"][0].as_py()) if len(base) else Path("base file")
    folds.check(base, file)
    held_out = folds.fold == fold
    val, train_base = base.filter(pa.array(held_out)), base.filter(pa.array(~held_out))
    for side, rows in (("validation", val), ("training", train_base)):
        if not len(rows):
            problem = f"the {side} part of fold {fold} has none of its rows"
            raise DataError(problem, file=file, hint="make the folds again, with fewer of them")
    if shares_prompt(val, train_base).any():
        problem = f"fold {fold} has prompts on both sides: the folds are not grouped by prompt"
        raise DataError(problem, file=file, hint="make the folds again")
    kept = [rows.filter(pa.array(~shares_prompt(rows, val))) for rows in extras]
    return FoldRows(merge(train_base, kept), val, sum(map(len, extras)) - sum(map(len, kept)))
