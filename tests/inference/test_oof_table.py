"""The table's reader believes nothing: whatever was changed since step 4 wrote it is refused, and named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arena_distill.data.folds import Folds, make_folds
from arena_distill.data.identity import rows_sha256
from arena_distill.data.loading import load_labelled
from arena_distill.data.records import Rows
from arena_distill.evaluation.metrics import softmax
from arena_distill.inference.oof_table import TABLE_SCHEMA, manifest_path, read_oof_table
from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import EXIT_BAD_INPUT, DataError
from tests.inference.oof_runs import EXTRA, FAMILIES, LOGITS, PROBABILITIES, folds_of, rows_of, table_path

Columns = dict[str, list[Any]]
BASE_ROWS = 160
AT = BASE_ROWS + 7  # a line of the second family: base row 7


@pytest.fixture
def table(scored: Path, tmp_path: Path) -> Path:
    """A copy of the table with its manifest."""
    copy = tmp_path / "oof_probs.parquet"
    shutil.copyfile(manifest_path(table_path(scored)), manifest_path(copy))
    return Path(shutil.copyfile(table_path(scored), copy))


@pytest.fixture(scope="session")
def rows(scored: Path) -> Rows:
    return rows_of(scored)


@pytest.fixture(scope="session")
def folds(scored: Path) -> Folds:
    return folds_of(scored)


def rewrite(table: Path, change: Callable[[Columns], None], *, sign: bool = True, schema: Any = TABLE_SCHEMA) -> None:
    """Change the table; with ``sign`` the manifest vouches for it, so that only the content can give it away."""
    columns = pq.read_table(table).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=schema), table)
    if sign:
        manifest = json.loads(manifest_path(table).read_text())
        manifest["outputs"][table.name] = sha256_file(table)
        manifest_path(table).write_text(json.dumps(manifest))


def refusal(table: Path, rows: Rows, folds: Folds) -> DataError:
    with pytest.raises(DataError) as caught:
        read_oof_table(table, rows, folds)
    error = caught.value
    assert error.exit_code == EXIT_BAD_INPUT == 3
    assert error.file == str(table) and str(error).startswith(str(table))
    assert error.hint
    return error


def put(column: str, value: Any, line: int = AT) -> Callable[[Columns], None]:
    def change(columns: Columns) -> None:
        assert columns[column][line] != value
        columns[column][line] = value

    return change


def add(amounts: dict[str, float]) -> Callable[[Columns], None]:
    def change(columns: Columns) -> None:
        for column, amount in amounts.items():
            columns[column][AT] += amount

    return change


def swap_folds(columns: Columns) -> None:
    fold = columns["fold"]
    other = next(line for line in range(AT + 1, 2 * BASE_ROWS) if fold[line] != fold[AT])
    fold[AT], fold[other] = fold[other], fold[AT]


def drop(columns: Columns) -> None:
    for values in columns.values():
        del values[AT]


def append_again(columns: Columns) -> None:
    for values in columns.values():
        values.append(values[AT])


def put_another_rows_line(columns: Columns) -> None:
    for values in columns.values():
        values[AT] = values[AT - 2]


def scale(columns: Columns) -> None:
    for column in PROBABILITIES:
        columns[column][AT] *= 1.01


def trade_texts_of_two_rows(columns: Columns) -> None:
    columns["row_hash"][AT], columns["row_hash"][AT + 1] = columns["row_hash"][AT + 1], columns["row_hash"][AT]


@dataclass(frozen=True)
class Damage:
    change: Callable[[Columns], None]
    column: str | None
    line: int | None = AT
    says: str = ""


SEEN_IN_THE_CONTENT = {
    "folds of two rows swapped": Damage(swap_folds, "fold"),
    "another fold": Damage(lambda c: put("fold", (c["fold"][AT] + 1) % 3)(c), "fold", says="the folds file"),
    "no fold": Damage(put("fold", None), "fold"),
    "another row hash": Damage(put("row_hash", "0" * 16), "row_hash", says="is not that of the data file"),
    "row hashes of two rows swapped": Damage(trade_texts_of_two_rows, "row_hash"),
    "no row hash": Damage(put("row_hash", None), "row_hash"),
    "another id": Damage(put("id", "somebody"), "id", says="is not that of the data file"),
    "no id": Damage(put("id", None), "id"),
    "a row dropped": Damage(drop, None, None, says=f"base row {AT - BASE_ROWS} is missing, and 0 more (family qwen2)"),
    "a row twice": Damage(append_again, "base_idx", 3 * BASE_ROWS, says="stands twice (family qwen2)"),
    "a row in another's place": Damage(put_another_rows_line, "base_idx", says="stands twice"),
    "a base row beyond the file": Damage(put("base_idx", BASE_ROWS), "base_idx", says="does not exist"),
    "a negative base row": Damage(put("base_idx", -1), "base_idx", says="does not exist"),
    "no base row": Damage(put("base_idx", None), "base_idx"),
    "no family": Damage(put("family", None), "family", None),
    "another family": Damage(put("family", FAMILIES[0]), "base_idx", says="stands twice (family llama)"),
    **{f"{name} is NaN": Damage(put(name, np.nan), name, says="is not finite") for name in LOGITS},
    **{f"{name} is missing": Damage(put(name, None), name, says="is not finite") for name in PROBABILITIES},
    "an infinite logit": Damage(put("logit_model_a", np.inf), "logit_model_a", says="is not finite"),
    "no swap gap": Damage(put("swap_gap", None), "swap_gap", says="is not finite"),
    "a probability changed": Damage(add({"p_tie": 0.1}), "p_model_a", says="do not sum to 1"),
    "probabilities scaled": Damage(scale, "p_model_a", says="do not sum to 1"),
    "probability moved": Damage(
        add({"p_model_a": 1e-3, "p_tie": -1e-3}), "p_model_a", says="are not the softmax of the logits"
    ),
    "a logit changed": Damage(add({"logit_model_b": 0.01}), "p_model_a", says="are not the softmax of the logits"),
    "probability below zero": Damage(
        add({"p_model_a": 2.0, "p_tie": -2.0}), "p_model_a", says="are not the softmax of the logits"
    ),
}


@pytest.mark.parametrize("damage", SEEN_IN_THE_CONTENT.values(), ids=SEEN_IN_THE_CONTENT.keys())
def test_a_change_is_refused_by_row_and_column_even_if_the_manifest_vouches_for_it(
    damage: Damage, table: Path, rows: Rows, folds: Folds
) -> None:
    rewrite(table, damage.change)
    error = refusal(table, rows, folds)
    assert error.column == damage.column
    assert error.row == (None if damage.line is None else damage.line + 1)
    assert damage.says in error.problem


def test_rewriting_without_a_change_is_accepted(table: Path, rows: Rows, folds: Folds) -> None:
    before = read_oof_table(table, rows, folds)
    rewrite(table, lambda columns: None)
    after = read_oof_table(table, rows, folds)
    assert all((before[name].logits == after[name].logits).all() for name in (*FAMILIES, "ensemble"))


def test_lines_in_another_order_are_put_back_by_base_row(table: Path, rows: Rows, folds: Folds) -> None:
    before = read_oof_table(table, rows, folds)

    def shuffle(columns: Columns) -> None:
        order = np.random.default_rng(0).permutation(len(columns["id"]))
        for values in columns.values():
            values[:] = [values[line] for line in order]

    rewrite(table, shuffle)
    after = read_oof_table(table, rows, folds)
    assert before.keys() == after.keys()
    for name, family in before.items():
        np.testing.assert_array_equal(family.logits, after[name].logits)
        np.testing.assert_array_equal(family.probabilities, after[name].probabilities)


# What no single row gives away: the manifest's hash does


def change_logits_and_probabilities(columns: Columns) -> None:
    columns["logit_model_a"][AT] += 1.0
    logits = np.array([columns[name][AT] for name in LOGITS], np.float32)
    for name, value in zip(PROBABILITIES, softmax(logits), strict=True):
        columns[name][AT] = float(value)


def swap_families(columns: Columns) -> None:
    names = {FAMILIES[0]: FAMILIES[1], FAMILIES[1]: FAMILIES[0]}
    columns["family"][:] = [names.get(name, name) for name in columns["family"]]


def drop_family(columns: Columns) -> None:
    for values in columns.values():
        del values[:BASE_ROWS]


@pytest.mark.parametrize(
    "change",
    [change_logits_and_probabilities, swap_families, drop_family, add({"swap_gap": 0.1})],
    ids=["logits and probabilities alike", "families swapped", "a family dropped", "swap gap"],
)
def test_a_consistent_change_is_refused_by_its_hash(
    change: Callable[[Columns], None], table: Path, rows: Rows, folds: Folds
) -> None:
    rewrite(table, change, sign=False)
    assert "was changed since step 4 wrote it" in refusal(table, rows, folds).problem


def test_a_table_without_its_manifest_is_refused(table: Path, rows: Rows, folds: Folds) -> None:
    manifest_path(table).unlink()
    assert "has lost oof_probs.manifest.json" in refusal(table, rows, folds).problem


# Other files


def test_with_another_data_file_it_is_refused(table: Path, folds: Folds) -> None:
    assert "do not belong together" in refusal(table, load_labelled(EXTRA).rows, folds).problem


def test_with_another_data_file_and_folds_made_of_it_the_row_is_named(table: Path, rows: Rows, folds: Folds) -> None:
    """One answer was edited, and the folds file made again came out the same."""
    hashes = rows["row_hash"].to_pylist()
    hashes[AT - BASE_ROWS] = "f" * 16
    edited = rows.set_column(rows.column_names.index("row_hash"), "row_hash", pa.array(hashes))
    error = refusal(table, edited, replace(folds, rows_sha256=rows_sha256(edited)))
    assert (error.row, error.column) == (AT - BASE_ROWS + 1, "row_hash")


def test_with_another_folds_file_of_the_same_rows_the_row_is_named(table: Path, rows: Rows, folds: Folds) -> None:
    other = make_folds(rows, folds.n_folds, seed=1)
    first = int(np.flatnonzero(other.fold != folds.fold)[0])
    error = refusal(table, rows, other)
    assert (error.row, error.column) == (first + 1, "fold")


# Broken files


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_table_cut_off_is_refused(kept: float, table: Path, rows: Rows, folds: Folds) -> None:
    os.truncate(table, int(table.stat().st_size * kept))
    assert "cannot be read" in refusal(table, rows, folds).problem


def test_flipped_bytes_are_refused(table: Path, rows: Rows, folds: Folds) -> None:
    data = bytearray(table.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    table.write_bytes(data)
    refusal(table, rows, folds)


def test_no_table_is_refused(table: Path, rows: Rows, folds: Folds) -> None:
    table.unlink()
    assert "no such out-of-fold table" in refusal(table, rows, folds).problem


@pytest.mark.parametrize("column", TABLE_SCHEMA.names)
def test_a_missing_column_is_named(column: str, table: Path, rows: Rows, folds: Folds) -> None:
    schema = pa.schema([field for field in TABLE_SCHEMA if field.name != column])
    rewrite(table, lambda columns: columns.pop(column) and None, schema=schema)
    error = refusal(table, rows, folds)
    assert (error.column, error.problem) == (column, "the column is missing")


def test_a_column_of_another_type_is_refused(table: Path, rows: Rows, folds: Folds) -> None:
    place = TABLE_SCHEMA.names.index("fold")
    schema = TABLE_SCHEMA.set(place, pa.field("fold", pa.string()))
    rewrite(table, lambda columns: columns.update(fold=[f"fold {n}" for n in columns["fold"]]), schema=schema)
    assert "other types" in refusal(table, rows, folds).problem


def test_an_empty_table_is_refused(table: Path, rows: Rows, folds: Folds) -> None:
    rewrite(table, lambda columns: [values.clear() for values in columns.values()] and None)
    refusal(table, rows, folds)
