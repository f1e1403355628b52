from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arena_distill.data.loading import load_test
from arena_distill.data.records import Rows, joined_turns
from arena_distill.evaluation.intervals import PromptBootstrap
from arena_distill.evaluation.languages import UNKNOWN, languages
from arena_distill.evaluation.metrics import score
from arena_distill.evaluation.slices import (
    FEW_ROWS,
    MOST_SLICES,
    Slicing,
    by_answers,
    by_length,
    by_name,
    by_turns,
    slice_scores,
    slicings,
)
from arena_distill.runtime.errors import DataError
from tests.conftest import SAMPLE

MakeRows = Callable[[Any, Any], Rows]


def labels_of(slicing: Slicing) -> list[str]:
    return [slicing.names[number] for number in slicing.slice_of_row]


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# Length


def test_lengths_stand_in_the_slice_whose_label_says_so_and_the_thirds_are_about_equal() -> None:
    rows = load_test(SAMPLE / "test.csv").rows
    slicing = by_length(rows)
    texts = zip(*(joined_turns(rows, name) for name in ("prompt", "response_a", "response_b")), strict=True)
    for row, label in zip(texts, labels_of(slicing), strict=True):
        length = sum(map(len, row))
        numbers = [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", label)]
        if label.startswith("up to"):
            assert length <= numbers[0]
        elif label.startswith("over"):
            assert length > numbers[0]
        else:
            assert numbers[0] <= length <= numbers[1]
        assert label.endswith(" characters")
    assert all(85 <= count <= 115 for count in np.bincount(slicing.slice_of_row))


def test_equal_lengths_are_never_parted(make_rows: MakeRows) -> None:
    rows = make_rows([(["p"], ["aa"], ["bb"])] * 7, [0] * 7)
    assert labels_of(by_length(rows)) == ["5 characters"] * 7
    some = make_rows([(["p"], ["a" * n], ["b"]) for n in (1, 1, 1, 1, 9)], [0] * 5)
    assert labels_of(by_length(some)) == ["up to 3 characters"] * 4 + ["over 3 characters"]


# Language


def test_sentences_are_known_by_their_language() -> None:
    sentences = {
        "Schreibe ein kurzes Gedicht über den Herbst.": "German",
        "Explain to me how the tides come about, please.": "English",
        "¿Puedes explicarme cómo funcionan las mareas?": "Spanish",
        "潮の満ち引きの仕組みを説明してください。": "Japanese",
        "请解释一下潮汐是怎样形成的。": "Chinese",
        "Объясните, пожалуйста, как возникают приливы.": "Russian",
        "Kto jest obecnie prezydentem Polski?": "Polish",
        "조수가 어떻게 생기는지 설명해 주세요.": "Korean",
    }
    assert languages(list(sentences)) == list(sentences.values())


@pytest.mark.parametrize("text", ["", "hi", "12345 + 2 = ?", "def f(x): return x+1", "\n \t", "🙂🙂🙂", "ok"])
def test_what_is_too_short_to_tell_or_no_language_is_unknown(text: str) -> None:
    assert languages([text]) == [UNKNOWN]


def test_an_english_file_has_one_language_but_for_what_cannot_be_told(tmp_path: Path) -> None:
    prompts = ["How do the tides come about?", "What is a good way to learn the piano?", "hi"]
    table = [{"id": str(n), "prompt": p, "response_a": "a", "response_b": "b"} for n, p in enumerate(prompts)]
    path = write_rows(tmp_path / "test.csv", table)
    assert labels_of(slicings(load_test(path).rows, path)["language"]) == ["English", "English", UNKNOWN]


# Turns, source, answers


def test_turns_are_one_two_or_more(make_rows: MakeRows) -> None:
    rows = make_rows([(["q"] * turns, ["a"], ["b"]) for turns in (3, 1, 7, 2, 0)], [0] * 5)
    slicing = by_turns(rows)
    assert labels_of(slicing) == ["3 or more turns", "1 turn", "3 or more turns", "2 turns", "1 turn"]
    assert slicing.names == ["1 turn", "2 turns", "3 or more turns"]


def test_the_source_is_a_column_of_the_test_file_and_shown_only_where_there_are_several(tmp_path: Path) -> None:
    def table(sources: list[str]) -> list[dict[str, str]]:
        rows = enumerate(sources)
        return [{"id": str(n), "prompt": "p", "response_a": "a", "response_b": "b", "source": s} for n, s in rows]

    path = write_rows(tmp_path / "test.csv", table(["arena", "panda", "arena", ""]))
    found = slicings(load_test(path).rows, path)
    assert labels_of(found["source"]) == ["arena", "panda", "arena", "unknown"]
    write_rows(path, table(["arena"] * 3))
    assert "source" not in slicings(load_test(path).rows, path)
    write_rows(path, [{name: text for name, text in row.items() if name != "source"} for row in table(["arena"] * 3)])
    assert "source" not in slicings(load_test(path).rows, path)


def test_a_source_that_cannot_be_read_is_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_bytes(b"id,prompt,response_a,response_b,source\n1,p,a,b,x\n2,p,a,b,\xff\n")
    with pytest.raises(DataError, match=r"test\.csv, row 2"):
        slicings(load_test(path).rows, path)


def test_identical_and_empty_answers_are_slices_of_their_own(make_rows: MakeRows) -> None:
    pairs = [(["x"], ["y"]), (["x"], [" x "]), ([" "], ["y"]), (["x"], []), ([], [])]
    slicing = by_answers(make_rows([(["q"], a, b) for a, b in pairs], [0] * 5))
    same, empty = "identical answers", "an empty answer"
    assert labels_of(slicing) == ["two different answers", same, empty, empty, same]


def test_beyond_the_most_frequent_names_the_others_share_a_slice_and_the_last_stays_last() -> None:
    names = [f"n{k:02d}" for k in range(MOST_SLICES + 4) for _ in range(100 - k)] + ["?"] * 500
    slicing = by_name(names, last="?")
    assert slicing.names == [f"n{k:02d}" for k in range(MOST_SLICES - 1)] + ["5 others", "?"]
    labels = labels_of(slicing)
    assert labels.count("5 others") == sum(100 - k for k in range(MOST_SLICES - 1, MOST_SLICES + 4))
    assert labels.count("?") == 500
    assert all(label in (name, "5 others") for label, name in zip(labels, names, strict=True))


# Scores


def test_every_way_divides_all_rows_and_each_slice_has_the_scores_of_its_rows() -> None:
    rows = load_test(SAMPLE / "test.csv").rows
    rng = np.random.default_rng(0)
    p, votes = rng.dirichlet(np.ones(3), size=len(rows)), np.eye(3)[rng.integers(3, size=len(rows))]
    found = slicings(rows, SAMPLE / "test.csv")
    assert set(found) == {"length", "language", "turns", "answers"}
    bootstrap = PromptBootstrap(rows["prompt_hash"].to_numpy(), 100, 0)
    table = slice_scores(found, p, votes, bootstrap)
    for name, slicing in found.items():
        assert sum(one["rows"] for one in table[name]) == len(rows)
        for number, one in enumerate(table[name]):
            chosen = slicing.slice_of_row == number
            scores = score(p[chosen], votes[chosen])
            assert one["slice"] == slicing.names[number] and one["rows"] == chosen.sum() > 0
            assert one["log_loss"]["value"] == pytest.approx(scores.log_loss, abs=1e-12)
            assert one["accuracy"]["value"] == pytest.approx(scores.accuracy, abs=1e-12)
            assert one["few"] == (one["rows"] < FEW_ROWS)
            if one["prompts"] > 1:
                assert one["log_loss"]["low"] <= one["log_loss"]["value"] <= one["log_loss"]["high"]
