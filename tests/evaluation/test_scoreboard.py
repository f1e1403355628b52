from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.baselines import fit_baselines
from arena_distill.evaluation.metrics import score
from arena_distill.evaluation.scoreboard import format_table, held_out_scores, read_truth, scoreboard
from arena_distill.runtime.errors import DataError

UNIFORM = np.full((30, 3), 1 / 3)


def test_held_out_scores_are_the_baselines_the_predictions_and_the_truth_in_that_order(
    length_decides: Callable[..., Rows],
) -> None:
    train, test = length_decides(100, seed=0), length_decides(30, seed=1)
    t = targets(test)
    table = held_out_scores(train, test, t, {"z": UNIFORM, "a": t}, truth=0.9 * t + 0.1 / 3)
    assert [name for name, _ in table] == ["constant prior", "length", "TF-IDF", "z", "a", "Bayes optimal"]
    scores = dict(table)
    for name, model in fit_baselines(train).items():
        assert scores[name] == score(model.predict(test), t)
    assert scores["z"] == score(UNIFORM, t)
    assert scores["a"].log_loss == pytest.approx(0, abs=1e-12)
    assert [name for name, _ in held_out_scores(train, test, t, {})] == ["constant prior", "length", "TF-IDF"]


def test_an_entry_that_cannot_be_scored_is_named() -> None:
    with pytest.raises(ValueError, match=r"^broken: .*finite"):
        scoreboard({"fine": UNIFORM, "broken": UNIFORM * np.nan}, UNIFORM)


def test_a_prediction_may_not_take_the_name_of_a_baseline(length_decides: Callable[..., Rows]) -> None:
    rows = length_decides(30, seed=2)
    with pytest.raises(ValueError, match="'length' is the name of a baseline"):
        held_out_scores(rows, rows, targets(rows), {"length": UNIFORM})


def test_the_table_is_aligned_and_says_how_many_rows() -> None:
    t = np.tile(np.eye(3), (400, 1))
    entries = scoreboard({"uniform": np.full((1200, 3), 1 / 3), "a much longer name": 0.7 * t + 0.1}, t)
    title, header, *lines = format_table(entries, title="Sample").splitlines()
    assert title == "Sample (1,200 rows)"
    assert header.split() == ["model", "log", "loss", "accuracy", "ECE", "Brier"]
    assert lines[0].split() == ["uniform", "1.0986", "0.3333", "0.0000", "0.6667"]
    assert lines[1].startswith("a much longer name  ")
    assert len({len(line) for line in (header, *lines)}) == 1


def test_a_metric_that_an_entry_lacks_shows_as_a_dash() -> None:
    _, _, line = format_table([("outside", {"log_loss": 0.9, "brier": None})]).splitlines()
    assert line.split() == ["outside", "0.9000", "-", "-", "-"]


def truth_file(path: Path, **change: list[object]) -> Path:
    columns: dict[str, list[object]] = {
        "id": ["a", "b", "c"],
        "p_model_a": [0.2, 0.5, 1.0],
        "p_model_b": [0.3, 0.25, 0.0],
        "p_tie": [0.5, 0.25, 0.0],
    }
    pq.write_table(pa.table({k: v for k, v in (columns | change).items() if v}), path)
    return path


def test_truth_comes_in_the_order_of_the_ids(tmp_path: Path) -> None:
    path = truth_file(tmp_path / "truth.parquet")
    np.testing.assert_array_equal(read_truth(path, ["c", "a"]), [[1, 0, 0], [0.2, 0.3, 0.5]])
    numbered = truth_file(tmp_path / "numbered.parquet", id=[7, 8, 9])
    np.testing.assert_array_equal(read_truth(numbered, ["8"]), [[0.5, 0.25, 0.25]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_tie": []}, "'p_tie': the column is missing"),
        ({"id": ["a", "a", "c"]}, "holds an id twice"),
        ({"id": ["a", "x", "y"]}, "2 of 3 ids are missing, the first 'b'"),
        ({"p_tie": [0.5, None, 0.0]}, "row 2: .*nan"),
        ({"p_tie": [0.5, 0.25, 0.1]}, "row 3: .*sum to 1"),
        ({"p_tie": ["half", "quarter", "none"]}, "cannot be read"),
    ],
)
def test_a_bad_truth_file_is_refused(tmp_path: Path, change: dict[str, list[object]], message: str) -> None:
    path = truth_file(tmp_path / "truth.parquet", **change)
    with pytest.raises(DataError, match=message):
        read_truth(path, ["a", "b", "c"])


def test_a_truth_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "truth.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    for path in (tmp_path / "truth.parquet", tmp_path / "absent.parquet", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_truth(path, ["a"])
