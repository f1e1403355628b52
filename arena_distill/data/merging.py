"""One training table out of a base file and extra files: merge, de-duplicate by prompt, shuffle A and B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.folds import by_first_appearance
from arena_distill.data.in_order import in_order
from arena_distill.data.records import EXTRA_BASE_IDX, SCHEMA, SWAPPED, Rows


@dataclass(frozen=True)
class MergeCounts:
    """Rows at each step of building a training table."""

    base: int
    extra: int
    duplicate_base: int = 0
    duplicate_extra: int = 0
    held_out_extra: int = 0
    shuffled_extra: int = 0

    @property
    def merged(self) -> int:
        """Rows before anything was removed."""
        return self.base + self.extra


def merge(base: Rows, extras: Sequence[Rows]) -> Rows:
    """``base`` first, then the extra rows in the order given, with ``base_idx`` -1."""
    return pa.concat_tables([base, *map(as_extra, extras)])


def as_extra(rows: Rows) -> Rows:
    """The same rows marked as extra data: they take no teacher logits and are never held out."""
    column = pa.array(np.full(len(rows), EXTRA_BASE_IDX))
    return rows.set_column(SCHEMA.get_field_index("base_idx"), SCHEMA.field("base_idx"), column)


def is_extra(rows: Rows) -> np.ndarray:
    """Which rows are extra data, bool ``[N]``."""
    return np.asarray(rows["base_idx"].to_numpy() == EXTRA_BASE_IDX)


def first_of_each_prompt(rows: Rows) -> np.ndarray:
    """Which rows are the first with their normalised prompt, bool ``[N]``. With base rows first, those win."""
    prompt = by_first_appearance(rows["prompt_hash"].to_numpy())
    seen = np.maximum.accumulate(prompt[:-1], dtype=prompt.dtype)
    return np.concatenate([np.ones(min(1, len(prompt)), dtype=bool), prompt[1:] > seen])


def keep_rows(rows: Rows, keep: np.ndarray) -> Rows:
    """The rows where ``keep`` (bool ``[N]``) is true: ``rows.filter``, but with all cores."""
    batches = rows.to_batches()
    starts = np.cumsum([0, *map(len, batches)])
    parts = ((batch, pa.array(keep[start : start + len(batch)])) for batch, start in zip(batches, starts, strict=False))
    return pa.Table.from_batches(in_order(lambda part: part[0].filter(part[1]), parts), rows.schema)


def shares_prompt(rows: Rows, others: Rows) -> np.ndarray:
    """Which of ``rows`` have a prompt that some row of ``others`` has, bool ``[N]``."""
    return np.isin(rows["prompt_hash"].to_numpy(), others["prompt_hash"].to_numpy())


def shuffle_extra_ab(rows: Rows, seed: int) -> tuple[Rows, int]:
    """Swap A and B, with their votes, in a random half of the extra rows; base rows keep their order.

    Which rows are swapped depends on the seed and each row's place among the extra rows only.

    Returns:
        The rows, ``row_hash`` unchanged (it names the row as loaded), and how many were swapped.
    """
    extra = np.flatnonzero(is_extra(rows))
    swap = np.zeros(len(rows), dtype=bool)
    swap[extra[np.random.default_rng(seed).random(len(extra)) < 0.5]] = True
    return _swap_where(rows, swap), int(swap.sum())


def _swap_where(rows: Rows, swap: np.ndarray) -> Rows:
    if not swap.any():
        return rows
    # Chunk by chunk: the texts of a large file together pass what one Arrow string array can hold.
    batches, start = [], 0
    for batch in rows.to_batches():
        batches.append(_swap_batch(batch, swap[start : start + len(batch)]))
        start += len(batch)
    return pa.Table.from_batches(batches, SCHEMA)


def _swap_batch(batch: pa.RecordBatch, swap: np.ndarray) -> pa.RecordBatch:
    mask = pa.array(swap)
    a, b, label, target = (batch.column(name) for name in ("response_a", "response_b", "label", "target"))
    flipped = pc.take(pa.array(SWAPPED, pa.int8()), label)
    flat = pc.fill_null(target, [0.0, 0.0, 0.0]).flatten().to_numpy().reshape(-1, 3)
    mirrored = pa.FixedSizeListArray.from_arrays(pa.array(flat[:, SWAPPED].ravel()), 3)
    changed = {
        "response_a": pc.if_else(mask, b, a),
        "response_b": pc.if_else(mask, a, b),
        "label": pc.if_else(mask, flipped, label),
        "target": pc.if_else(pc.and_(mask, target.is_valid()), mirrored, target),
    }
    columns = [changed.get(name, batch.column(name)) for name in SCHEMA.names]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
