"""The choice of calibration examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arena_distill.conversion.calibration_texts import STRATA, CalibrationTexts, choose_calibration, text_lengths
from arena_distill.data.loading import load_texts
from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.models.classifier import load_tokenizer
from tests.conftest import SAMPLE


@pytest.fixture(scope="module")
def choose(backbones: Path):
    tokenizer = load_tokenizer(str(backbones / "bert"))
    layout = TextFormat.for_tokenizer(tokenizer, token_types=3)
    rows = load_texts(SAMPLE / "train.csv")

    def choose(count: int, seed: int = 1, pairs: int = len(rows)) -> CalibrationTexts:
        return choose_calibration(rows.slice(0, pairs), tokenizer, layout, max_length=80, count=count, seed=seed)

    return choose


def test_every_stratum_of_length_gives_equally_many_examples_in_both_orders(choose) -> None:
    texts = choose(128)
    lengths = text_lengths(load_texts(SAMPLE / "train.csv"))
    edges = np.quantile(lengths, np.linspace(0, 1, STRATA + 1)[1:-1])
    assert len(texts) == 128
    for stratum in range(STRATA):
        mine = texts.strata == stratum
        assert mine.sum() == 128 // STRATA
        assert texts.swapped[mine].sum() == 128 // STRATA // 2
        longest = edges[stratum] if stratum < STRATA - 1 else np.inf
        assert (lengths[texts.rows[mine]] <= longest).all()


def test_no_pair_stands_twice_while_there_are_pairs_enough(choose) -> None:
    assert len(set(choose(512).rows)) == 512


def test_few_pairs_stand_in_both_orders(choose) -> None:
    texts = choose(1000, pairs=100)
    assert len(texts) == 200
    assert len({(row, swap) for row, swap in zip(texts.rows, texts.swapped, strict=True)}) == 200


def test_the_examples_are_the_very_sequences_that_the_student_reads(choose, backbones: Path) -> None:
    texts = choose(32)
    tokenizer = load_tokenizer(str(backbones / "bert"))
    layout = TextFormat.for_tokenizer(tokenizer, token_types=3)
    rows = load_texts(SAMPLE / "train.csv")
    for place, (row, swap) in enumerate(zip(texts.rows, texts.swapped, strict=True)):
        tokens = tokenize_rows(rows.slice(int(row), 1), tokenizer)
        sequences, number = assemble(tokens, layout, [View(80, bool(swap))])
        assert (sequences.ids[number[0, 0]] == texts.sequences.ids[place]).all()


def test_equal_seeds_draw_equal_examples(choose) -> None:
    assert (choose(64, seed=3).rows == choose(64, seed=3).rows).all()
    assert (choose(64, seed=3).rows != choose(64, seed=4).rows).any()
