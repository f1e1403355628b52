"""Rows as long as real chats, made of the sample's texts.

The sample's own rows have about 130 tokens. Here prompt and answers go on with texts of further sample rows until a
row has the length drawn for it: log-normal, by default with a median of 350 tokens and none beyond 2,000. Answers take
the larger part. Equal arguments give equal rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import REPOSITORY

from arena_distill.data.identity import prompt_hashes, row_hashes
from arena_distill.data.loading import load_labelled, load_texts
from arena_distill.data.prompts import TextFormat, texts_of, tokenize_rows
from arena_distill.data.records import SCHEMA, TEXT_COLUMNS, Rows, joined_turns

SAMPLE = REPOSITORY / "data" / "sample"
REAL = REPOSITORY.parent / "shared" / "data" / "pandalm_train.csv"  # people's votes, where that folder exists
MEDIAN, SIGMA, SHORTEST, LONGEST = 350, 0.6, 40, 2000
PROMPT_SHARE = 0.2  # of a row's tokens; real prompts are shorter than answers
WORD = re.compile(r"\w+|[^\w\s]")

Counter = Callable[[list[str]], list[int]]


def sample_rows(real: bool = False) -> Rows:
    """The sample's training rows; with ``real``, human votes where they are at hand."""
    return load_labelled(REAL if real and REAL.is_file() else SAMPLE / "train.csv").rows


def sample_texts() -> list[str]:
    """Every text of the sample's training rows, for a tokenizer to learn from."""
    return [text for column in texts_of(load_texts(SAMPLE / "train.csv")) for text in column.to_pylist()]


def chat_rows(
    count: int,
    seed: int = 0,
    *,
    median: float = MEDIAN,
    sigma: float = SIGMA,
    longest: int = LONGEST,
    tokenizer: Any = None,
    real: bool = False,
) -> Rows:
    """Labelled rows whose tokens (prompt + A + B) are log-normal.

    Args:
        count: how many.
        seed: of lengths and texts.
        median: tokens of the middle row.
        sigma: spread of the lengths' logarithm; 0 makes all rows alike.
        longest: no row is longer.
        tokenizer: what counts tokens; without one, words and signs are counted, about four fifths of WordPiece tokens.
        real: stretch human votes instead of the sample, where they are at hand.
    """
    source = sample_rows(real)
    rng = np.random.default_rng(seed)
    counter = _words if tokenizer is None else partial(_tokens, tokenizer)
    columns = {name: joined_turns(source, name) for name in TEXT_COLUMNS}
    paragraphs = {name: _Paragraphs(texts, counter) for name, texts in columns.items()}
    lengths = np.clip(median * np.exp(sigma * rng.standard_normal(count)), SHORTEST, longest)
    share = np.clip(PROMPT_SHARE * np.exp(0.5 * rng.standard_normal(count)), 0.03, 0.6)
    part = np.clip(0.5 + 0.12 * rng.standard_normal(count), 0.2, 0.8)  # of the answers' tokens, A's
    sizes = np.stack([lengths * share, lengths * (1 - share) * part, lengths * (1 - share) * (1 - part)], axis=1)
    order = np.concatenate([rng.permutation(len(source)) for _ in range(-(-count // len(source)))])[:count]
    texts = {
        name: [paragraphs[name].stretch(int(row), float(size)) for row, size in zip(order, sizes[:, k], strict=True)]
        for k, name in enumerate(TEXT_COLUMNS)
    }
    return make_rows(texts, source.take(pa.array(order))["label"].to_pylist())


def make_rows(texts: dict[str, list[str]], labels: Sequence[int | None]) -> Rows:
    """Canonical rows of single turns."""
    turns = {name: pa.array([[text] for text in texts[name]], SCHEMA.field(name).type) for name in TEXT_COLUMNS}
    count = len(labels)
    columns = {
        "id": pa.array([str(number) for number in range(count)]),
        **turns,
        "label": pa.array(labels, pa.int8()),
        "target": pa.nulls(count, SCHEMA.field("target").type),
        "source": pa.array(["bench"] * count),
        "base_idx": pa.array(np.arange(count)),
        "row_hash": row_hashes(turns),
        "prompt_hash": prompt_hashes(turns["prompt"]),
    }
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def cut_rows(rows: Rows, tokenizer: Any, layout: TextFormat, max_length: int) -> Rows:
    """The same rows with texts cut, between words, to what ``max_length`` leaves for them: no judge cuts them again.

    So a peer that cuts in another way gets the same tokens as we do.
    """
    share = layout.allocate(tokenize_rows(rows, tokenizer).lengths, max_length)
    texts = {
        name: [_cut(text, int(size), tokenizer) for text, size in zip(column.to_pylist(), share[:, k], strict=True)]
        for k, (name, column) in enumerate(zip(TEXT_COLUMNS, texts_of(rows), strict=True))
    }
    return make_rows(texts, rows["label"].to_pylist())


def row_lengths(rows: Rows, tokenizer: Any) -> np.ndarray:
    """Tokens of prompt + A + B, int64 ``[N]``, without the fixed pieces of a text format."""
    return np.asarray(tokenize_rows(rows, tokenizer).lengths.sum(axis=1))


def write_parquet(rows: Rows, file: Path) -> None:
    """The three texts as plain strings, and the label: what a peer reads."""
    import pyarrow.parquet as pq

    columns = dict(zip(TEXT_COLUMNS, texts_of(rows), strict=True))
    pq.write_table(pa.table({**columns, "label": rows["label"]}), file)


class _Paragraphs:
    """Texts to go on with, whose tokens are counted once."""

    def __init__(self, texts: list[str], counter: Counter) -> None:
        self.texts, self.sizes = texts, counter(texts)

    def stretch(self, first: int, size: float) -> str:
        """Text ``first`` and those after it, up to ``size`` tokens; the last is cut between words."""
        parts: list[str] = []
        number, left = first, size
        while left >= 1:
            text, tokens = self.texts[number % len(self.texts)], self.sizes[number % len(self.texts)]
            number += 1
            if not tokens:
                continue
            parts.append(text if tokens <= left else _head(text, left / tokens))
            left -= tokens
        return "\n\n".join(parts)


def _head(text: str, share: float) -> str:
    end = max(1, round(len(text) * share))
    space = text.rfind(" ", 0, end + 1)
    return text[: space if space > 0 else end]


def _cut(text: str, size: int, tokenizer: Any) -> str:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if len(encoded["input_ids"]) <= size:
        return text
    words = encoded.word_ids()
    while size > 0 and words[size] == words[size - 1]:
        size -= 1
    return text[: encoded["offset_mapping"][size - 1][1]] if size else ""


def _words(texts: list[str]) -> list[int]:
    return [len(WORD.findall(text)) for text in texts]


def _tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
