from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.heldout import HELDOUT_FILE, HELDOUT_SCHEMA, read_heldout, write_heldout
from arena_distill.runtime.errors import DataError


@pytest.fixture
def rows(length_decides: Callable[[int, int], Rows]) -> Rows:
    return length_decides(30, 0)


@pytest.fixture
def predicted() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(3), size=30)


@pytest.fixture
def written(tmp_path: Path, rows: Rows, predicted: np.ndarray) -> Path:
    path = tmp_path / HELDOUT_FILE
    write_heldout(path, rows, predicted)
    return path


def test_what_was_written_comes_back(written: Path, rows: Rows, predicted: np.ndarray) -> None:
    held_out = read_heldout(written)
    assert held_out.ids == rows["id"].to_pylist()
    assert held_out.row_hash == rows["row_hash"].to_pylist()
    for found, name in ((held_out.base_idx, "base_idx"), (held_out.prompt_hash, "prompt_hash")):
        np.testing.assert_array_equal(found, rows[name].to_numpy())
        assert found.dtype == rows[name].to_numpy().dtype
    np.testing.assert_array_equal(held_out.probabilities, predicted)
    np.testing.assert_array_equal(held_out.targets, targets(rows))
    assert [entry.name for entry in written.parent.iterdir()] == [HELDOUT_FILE]


def test_soft_votes_unusual_ids_and_the_largest_prompt_hash_survive(
    tmp_path: Path, make_rows: Callable[..., Rows]
) -> None:
    rows = make_rows([(["p"], ["a"], ["b"])] * 2, [[0.2, 0.3, 0.5], 2])
    rows = rows.set_column(0, "id", pa.array(["", 'ü,"\n'])).set_column(
        9, HELDOUT_SCHEMA.field("prompt_hash"), pa.array([0, 2**64 - 1], pa.uint64())
    )
    write_heldout(tmp_path / "h", rows, np.array([[0.1, 0.2, 0.7], [1, 0, 0]], np.float32))
    held_out = read_heldout(tmp_path / "h")
    assert held_out.ids == ["", 'ü,"\n']
    assert held_out.prompt_hash.tolist() == [0, 2**64 - 1]
    np.testing.assert_array_equal(held_out.targets, [[0.2, 0.3, 0.5], [0, 0, 1]])


def test_rows_that_are_a_slice_of_a_larger_table_are_written_as_such(
    tmp_path: Path, rows: Rows, predicted: np.ndarray
) -> None:
    write_heldout(tmp_path / "h", pa.concat_tables([rows.slice(20, 5), rows.slice(3, 5)]), predicted[:10])
    held_out = read_heldout(tmp_path / "h")
    assert held_out.base_idx.tolist() == [*range(20, 25), *range(3, 8)]
    np.testing.assert_array_equal(held_out.targets, targets(rows)[held_out.base_idx])


@pytest.mark.parametrize(
    ("row", "values", "problem"),
    [
        (3, [np.nan, 0.5, 0.5], "row 4, column 'p_model_a': nan is not a finite number"),
        (0, [0.0, np.inf, 1.0], "row 1, column 'p_model_b': inf is not a finite number"),
        (29, [-0.5, 0.75, 0.75], "row 30, column 'p_model_a': -0.5 is negative"),
        (7, [0.5, 0.5, 0.25], "row 8: 1.25 is the sum of p_model_a, p_model_b, p_tie instead of 1"),
    ],
)
def test_predictions_that_are_not_probabilities_are_not_written(
    written: Path, rows: Rows, predicted: np.ndarray, row: int, values: list[float], problem: str
) -> None:
    before = written.read_bytes()
    predicted[row] = values
    with pytest.raises(DataError) as caught:
        write_heldout(written, rows, predicted)
    assert f"{written}, {problem}" in str(caught.value)
    assert written.read_bytes() == before
    assert [entry.name for entry in written.parent.iterdir()] == [HELDOUT_FILE]


def test_a_wrong_count_of_predictions_is_not_written(tmp_path: Path, rows: Rows, predicted: np.ndarray) -> None:
    for p in (predicted[:29], predicted[:, :2], predicted[0]):
        with pytest.raises(DataError, match=r"must have shape \[30, 3\]"):
            write_heldout(tmp_path / "h", rows, p)
    assert not list(tmp_path.iterdir())


def test_extra_rows_repeated_rows_and_no_rows_are_not_written(
    tmp_path: Path, rows: Rows, predicted: np.ndarray
) -> None:
    def with_base_idx(row: int, value: int) -> Rows:
        base_idx = np.arange(30)
        base_idx[row] = value
        return rows.set_column(7, "base_idx", pa.array(base_idx))

    with pytest.raises(DataError, match=r"row 5, column 'base_idx': is negative"):
        write_heldout(tmp_path / "h", with_base_idx(4, -1), predicted)
    with pytest.raises(DataError, match=r"row 10, column 'base_idx': 2 stands in the file twice"):
        write_heldout(tmp_path / "h", with_base_idx(9, 2), predicted)
    with pytest.raises(DataError, match="has no rows"):
        write_heldout(tmp_path / "h", rows.slice(0, 0), predicted[:0])
    assert not list(tmp_path.iterdir())


def replaced(table: pa.Table, name: str, values: pa.Array | list[object]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "where", "problem"),
    [
        (lambda t: t.drop_columns("row_hash"), "column 'row_hash'", "is missing"),
        (lambda t: t.drop_columns("winner_tie"), "column 'winner_tie'", "is missing"),
        (lambda t: t.append_column("p_tie", t["p_tie"]), "column 'p_tie'", "several columns"),
        (lambda t: replaced(t, "id", list(range(30))), "column 'id'", "holds int64 instead of string"),
        (lambda t: replaced(t, "base_idx", ["x"] * 30), "column 'base_idx'", "holds string instead of int64"),
        (lambda t: replaced(t, "p_tie", np.zeros(30, np.float32)), "column 'p_tie'", "holds float instead of double"),
        (lambda t: replaced(t, "p_model_b", [0.5] * 9 + [None] + [0.5] * 20), "row 10, column 'p_model_b'", "nothing"),
        (lambda t: replaced(t, "row_hash", [None] + ["x"] * 29), "row 1, column 'row_hash'", "holds nothing"),
        (lambda t: t.slice(0, 0), "", "has no rows"),
        (lambda t: replaced(t, "base_idx", [*range(29), 11]), "row 30, column 'base_idx'", "11 stands in the file"),
        (lambda t: replaced(t, "base_idx", [-1, *range(29)]), "row 1, column 'base_idx'", "is negative"),
        (lambda t: replaced(t, "p_model_a", [np.nan] * 30), "row 1, column 'p_model_a'", "nan is not a finite"),
        (lambda t: replaced(t, "winner_tie", [2.0] * 30), "row 1", "is the sum of winner_model_a"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(
    written: Path, change: Callable[[pa.Table], pa.Table], where: str, problem: str
) -> None:
    pq.write_table(change(pq.read_table(written)), written)
    with pytest.raises(DataError) as caught:
        read_heldout(written)
    assert str(written) in str(caught.value)
    assert where in str(caught.value)
    assert problem in str(caught.value)
    assert str(caught.value).endswith("-> run student-calibrate again")


def test_a_missing_file_a_directory_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("id,row_hash\n")
    (tmp_path / "empty").touch()
    for name, problem in (("absent", "no such file"), ("", "no such file"), ("text", "read"), ("empty", "read")):
        with pytest.raises(DataError, match=f"{problem}.*student-calibrate"):
            read_heldout(tmp_path / name)


def test_a_torn_file_is_refused_wherever_it_is_torn(written: Path) -> None:
    whole = written.read_bytes()
    for size in range(0, len(whole), 97):
        written.write_bytes(whole[:size])
        with pytest.raises(DataError, match="cannot be read"):
            read_heldout(written)


def test_a_damaged_byte_never_changes_what_is_read(written: Path) -> None:
    """Each page has a checksum; damage elsewhere is refused or does not touch a value."""
    whole, good = written.read_bytes(), read_heldout(written)
    refused = 0
    for place in range(4, len(whole), 41):
        written.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            found = read_heldout(written)
        except DataError:
            refused += 1
            continue
        assert (found.ids, found.row_hash) == (good.ids, good.row_hash), place
        for name in ("base_idx", "prompt_hash", "probabilities", "targets"):
            np.testing.assert_array_equal(getattr(found, name), getattr(good, name), err_msg=str(place))
    assert refused > 20
