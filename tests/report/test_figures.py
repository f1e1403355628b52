"""Every number of a report can be had again from the files that it names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arena_distill.report.figures import Figure, derive, pointer, recompute, value_at
from arena_distill.runtime.artifacts import sha256_file
from tests.report.conftest import report_of
from tests.report.finished_run import FinishedRun, own_score


def figures(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if "value" in part and ("from" in part or "rule" in part):
            yield part
        else:
            for item in part.values():
                yield from figures(item)
    elif isinstance(part, list):
        for item in part:
            yield from figures(item)


def test_every_figure_of_a_report_is_recomputed_from_the_files_that_it_names(finished: FinishedRun) -> None:
    report = report_of(finished)
    root = (finished.models / report["files_are_relative_to"]).resolve()

    def read(name: str) -> Any:
        return json.loads((root / name).read_text("utf-8"))

    found = list(figures(report))
    wrong = [figure for figure in found if recompute(figure, read) != figure["value"]]
    assert not wrong
    assert {figure.get("rule") for figure in found} >= {None, "sum", "mean", "mean weighted by rows", "difference"}
    assert len(found) > 100


def test_the_headline_score_is_the_score_of_the_submission(finished: FinishedRun) -> None:
    score = report_of(finished)["headline"]["scores"]["log_loss"]
    assert score["value"]["value"] == pytest.approx(own_score(finished), abs=1e-12)
    assert score["value"]["low"] < score["value"]["value"] < score["value"]["high"]


def test_files_are_listed_with_their_hashes(finished: FinishedRun) -> None:
    listed = {entry["name"]: entry for entry in report_of(finished)["files"]}
    assert {entry["state"] for entry in listed.values()} == {"read", "checked"}
    for name, entry in listed.items():
        assert entry["sha256"] == sha256_file(finished.root / name)
    assert "sub/x_evaluation.json" in listed
    assert "model_save/x/final_quantized_model/model.safetensors" in listed


def test_a_figure_of_figures_names_every_file_that_it_is_made_of() -> None:
    one, two = Figure(3, "a.json#/x"), Figure(1, "b.json#/y/0")
    nested = derive("mean", derive("sum", one, two), one)
    assert nested.value == 3.5
    assert nested.files == ("a.json", "b.json")


@pytest.mark.parametrize("key", ["sub/x.csv", "a~b", "~1", "0", "läßt sich"])
def test_a_pointer_finds_any_key_again(key: str) -> None:
    assert value_at({"k": [{key: 5}]}, pointer("k", 0, key)) == 5


def test_a_weighted_mean_weighs_by_rows() -> None:
    parts = [Figure(value, f"a#/{k}") for k, value in enumerate((1.0, 10, 2.0, 30))]
    assert math.isclose(derive("mean weighted by rows", *parts).value, 1.75)


def test_a_report_elsewhere_says_where_its_files_are(finished: FinishedRun, tmp_path: Path) -> None:
    report = report_of(finished, report_out=str(tmp_path / "deep" / "er" / "page.html"))
    root = tmp_path / "deep" / "er" / report["files_are_relative_to"]
    assert root.resolve() == finished.root.resolve()
