"""The canonical row: one votable pair of answers, as every later stage sees it.

Rows travel as a ``pyarrow.Table`` with exactly the columns of ``SCHEMA``; the alias ``Rows`` names such a table.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CLASSES = ("model_a", "model_b", "tie")
"""Class order of every label, logit and probability: A, B, tie."""

PROBABILITY_COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")
"""Column names of a submission, in class order."""

TEXT_COLUMNS = ("prompt", "response_a", "response_b")

SWAPPED = (1, 0, 2)
"""Class order after the two answers trade places: ``probabilities[:, SWAPPED]``."""

EXTRA_BASE_IDX = -1
"""``base_idx`` of rows that do not come from the base train file."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("prompt", pa.list_(pa.string())),
        pa.field("response_a", pa.list_(pa.string())),
        pa.field("response_b", pa.list_(pa.string())),
        pa.field("label", pa.int8()),  # 0 = A, 1 = B, 2 = tie; null where the file has no labels
        pa.field("target", pa.list_(pa.float64(), 3)),  # soft votes (A, B, tie); null where only a hard label is known
        pa.field("source", pa.string()),  # which file the row came from
        pa.field("base_idx", pa.int64()),  # row number in the base train file after dropping unusable rows
        pa.field("row_hash", pa.string()),  # 16 hex digits over the three texts
        pa.field("prompt_hash", pa.uint64()),  # over the normalised prompt: equal prompts share a group
    ]
)

Rows: TypeAlias = pa.Table

TURN_SEPARATOR = "\n\n"


def joined_turns(rows: Rows, column: str) -> list[str]:
    """One string a row: the turns of ``column`` joined by blank lines, empty (null) turns left out."""
    return pc.binary_join(drop_null_turns(rows[column]), TURN_SEPARATOR).to_pylist()


def drop_null_turns(turns: pa.ChunkedArray) -> pa.ChunkedArray:
    """``turns`` (list<string>) with null turns removed; rows keep their place, an answer of nulls becomes ``[]``."""
    return pa.chunked_array([_drop_null_values(chunk) for chunk in turns.chunks], type=turns.type)


def _drop_null_values(lists: pa.ListArray) -> pa.ListArray:
    values = lists.flatten()
    if not values.null_count:
        return lists
    valid = np.concatenate([[0], np.cumsum(values.is_valid().to_numpy(zero_copy_only=False))])
    offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    return pa.ListArray.from_arrays(pa.array(valid[offsets], pa.int32()), values.drop_null())


def targets(rows: Rows) -> np.ndarray:
    """Class targets, float64 ``[N, 3]``: soft votes where the row has them, else the one-hot label.

    Raises:
        ValueError: a row has neither (the caller should have refused unlabelled rows).
    """
    labels = rows["label"].combine_chunks()
    soft = rows["target"].combine_chunks()
    out = np.zeros((len(rows), 3))
    has_soft = soft.is_valid().to_numpy(zero_copy_only=False)
    if has_soft.any():
        out[has_soft] = soft.drop_null().flatten().to_numpy().reshape(-1, 3)
    if not has_soft.all():
        hard = np.flatnonzero(~has_soft)
        label = labels.take(pa.array(hard))
        if label.null_count:
            raise ValueError(f"{label.null_count} rows have neither a label nor a target")
        out[hard, label.to_numpy()] = 1.0
    return out
