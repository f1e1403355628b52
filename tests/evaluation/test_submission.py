from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arena_distill.evaluation.submission import read_submission, write_submission
from arena_distill.runtime.errors import EXIT_BAD_INPUT, DataError

ROOT = Path(__file__).resolve().parents[2]
HEADER = "id,winner_model_a,winner_model_b,winner_tie\n"
IDS = ["7", "x,y", "0007"]
P = np.array([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0], [0.1, 0.2, 0.7]])


def changed(row: int, column: int, value: float) -> np.ndarray:
    p = P.copy()
    p[row, column] = value
    return p


def test_a_written_submission_has_kaggles_layout(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "submission.csv"
    write_submission(path, IDS, P)
    first, *lines = path.read_bytes().decode().split("\n")
    assert first + "\n" == HEADER
    assert lines[:2] == ["7,0.25,0.25,0.5", '"x,y",1.0,0.0,0.0']
    assert [entry.name for entry in path.parent.iterdir()] == ["submission.csv"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=6, unique=True))
def test_any_ids_and_float32_probabilities_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    p = np.random.default_rng(len(ids)).dirichlet(np.ones(3), size=len(ids)).astype(np.float32)
    write_submission(path, ids, p)
    read_ids, read = read_submission(path)
    assert read_ids == ids
    np.testing.assert_allclose(read, p, atol=1e-7)
    np.testing.assert_allclose(read.sum(axis=1), 1, rtol=0, atol=3e-16)
    np.testing.assert_array_equal(read_submission(path, ids[::-1])[1], read[::-1])


def test_rounding_outside_zero_and_one_is_clipped(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, ["a"], [[1 + 5e-10, -5e-10, 0.0]])
    np.testing.assert_array_equal(read_submission(path)[1], [[1, 0, 0]])


@pytest.mark.parametrize(
    ("ids", "p", "where", "problem"),
    [
        (["a", "b", "a"], P, "row 3, column 'id'", "stands in row 1 already"),
        (["a", "", "c"], P, "row 2, column 'id'", "the id is ''"),
        (["a", None, "c"], P, "row 2, column 'id'", "the id is None"),
        (["a", "b", "c\ud800"], P, "row 3, column 'id'", "not valid Unicode"),
        (["a", "b"], P, "", "2 ids for 3 rows"),
        ([], np.zeros((0, 3)), "", "no rows"),
        (IDS, P[:, :2], "", "shape"),
        (IDS, P[0], "", "shape"),
        (IDS, changed(1, 2, np.nan), "row 2, column 'winner_tie'", "not a finite number"),
        (IDS, changed(0, 0, np.inf), "row 1, column 'winner_model_a'", "not a finite number"),
        (IDS, changed(2, 1, -0.1), "row 3, column 'winner_model_b'", "not within"),
        (IDS, changed(1, 0, 1.1), "row 2, column 'winner_model_a'", "not within"),
        (IDS, changed(2, 2, 0.71), "row 3", "sum to 1.01, not 1"),
        (IDS, changed(2, 2, 0.70001), "row 3", "sum to"),
    ],
)
def test_a_bad_submission_is_not_written_and_the_old_file_stays(
    tmp_path: Path, ids: list[str], p: np.ndarray, where: str, problem: str
) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, IDS, P)
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        write_submission(path, ids, p)
    assert str(path) in str(caught.value)
    assert where in str(caught.value)
    assert problem in str(caught.value)
    assert caught.value.hint
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["submission.csv"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_write_that_runs_out_of_space_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow past 100 kB: a real failure in the middle of writing."""
    path = tmp_path / "submission.csv"
    write_submission(path, IDS, P)
    before = path.read_bytes()
    code = """
import resource, sys
import numpy as np
from arena_distill.evaluation.submission import write_submission
from arena_distill.runtime.errors import run_command
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
ids = [str(number) for number in range(20_000)]
sys.exit(run_command(lambda: write_submission(sys.argv[1], ids, np.full((20_000, 3), 1 / 3))))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-B", "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == EXIT_BAD_INPUT, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["submission.csv"]


def test_a_failure_at_the_rename_leaves_no_litter(tmp_path: Path) -> None:
    (tmp_path / "submission.csv").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_submission(tmp_path / "submission.csv", IDS, P)
    assert [entry.name for entry in tmp_path.iterdir()] == ["submission.csv"]


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match="cannot be written"):
        write_submission(tmp_path / "file" / "submission.csv", IDS, P)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_submission_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    write_submission(tmp_path / "submission.csv", IDS, P)
    (tmp_path / "plain").touch()
    assert (tmp_path / "submission.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


GOOD = HEADER + "a,0.2,0.3,0.5\nb,1,0,0\n"


@pytest.mark.parametrize(
    ("content", "where", "problem"),
    [
        ("", "", "is empty"),
        ("\n\n", "", "is empty"),
        (HEADER, "", "no rows"),
        ("id,winner_model_a,winner_model_b\na,0.5,0.5\n", "", "has columns"),
        ("id,winner_model_b,winner_model_a,winner_tie\na,0.2,0.3,0.5\n", "", "has columns"),
        ("0,id,winner_model_a,winner_model_b,winner_tie\n0,a,0.2,0.3,0.5\n", "", "has columns"),
        ("<!DOCTYPE html>\n<html></html>\n", "", "has columns"),
        (GOOD + "c,0.2,0.3\n", "row 3", "3 fields"),
        (GOOD + "c,0.2,0.3,0.5,1\n", "row 3", "5 fields"),
        (GOOD + "a,0.2,0.3,0.5\n", "row 3, column 'id'", "stands in row 1 already"),
        (GOOD + ",0.2,0.3,0.5\n", "row 3, column 'id'", "the id is ''"),
        (GOOD + "c,0.2,x,0.5\n", "row 3, column 'winner_model_b'", "'x' is not a number"),
        (GOOD + "c,0.2,,0.8\n", "row 3, column 'winner_model_b'", "'' is not a number"),
        (GOOD + "c,nan,0.3,0.5\n", "row 3, column 'winner_model_a'", "not a finite number"),
        (GOOD + "c,0,0,inf\n", "row 3, column 'winner_tie'", "not a finite number"),
        (GOOD + "c,-0.2,0.7,0.5\n", "row 3, column 'winner_model_a'", "not within"),
        (GOOD + "c,0,2,0\n", "row 3, column 'winner_model_b'", "not within"),
        (GOOD + "c,0.2,0.3,0.4\n", "row 3", "sum to 0.9, not 1"),
        (GOOD + '"c,0.2,0.3,0.5\n', "", "not a UTF-8 CSV"),
        (b"\xff\xfe" + GOOD.encode("utf-16-le"), "", "not a UTF-8 CSV"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: str | bytes, where: str, problem: str) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read_submission(path)
    assert str(path) in str(caught.value)
    assert where in str(caught.value)
    assert problem in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("expected", "where", "problem"),
    [
        (["a", "b", "c"], "column 'id'", "1 of 3 ids are missing, the first 'c'"),
        (["b"], "row 1, column 'id'", "1 ids are not in the test file, the first 'a'"),
        (["a", "B"], "column 'id'", "missing, the first 'B'"),
    ],
)
def test_other_ids_than_expected_are_refused(tmp_path: Path, expected: list[str], where: str, problem: str) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(GOOD)
    with pytest.raises(DataError) as caught:
        read_submission(path, expected)
    assert where in str(caught.value)
    assert problem in str(caught.value)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_submission(path)


def test_rows_come_back_in_the_expected_order(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(GOOD)
    ids, p = read_submission(path, ["b", "a"])
    assert ids == ["b", "a"]
    np.testing.assert_array_equal(p, [[1, 0, 0], [0.2, 0.3, 0.5]])


def test_a_spreadsheets_byte_order_mark_and_line_ends_are_fine_and_rounded_rows_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + "a,0.333,0.333,0.333\n").replace("\n", "\r\n").encode())
    ids, p = read_submission(path)
    assert ids == ["a"]
    np.testing.assert_allclose(p, 1 / 3, rtol=1e-15)
