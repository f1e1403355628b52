"""Text assembly: token sequences for prompt, answer A and answer B under one shared length budget.

Each distinct text is tokenized once. Sequences for any length limit, and for the swapped order, are then put
together from the same token ids, so that swap(A, B) and every test-time length cost no further tokenizing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.ragged import Ragged
from arena_distill.data.records import TEXT_COLUMNS, Rows, drop_null_turns
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import InputError, SettingsError

TEXT_FORMAT_FILE = "text_format.json"
TEXT_FORMAT_VERSION = 1
CUT_MARK = " ... "
TOKENIZER_CHUNK = 4096  # texts a call: large enough for the tokenizer's threads, small enough for memory

ANSWER_FLOOR = 4  # each answer may keep a quarter of the budget whatever the lengths of the other texts
PROMPT_FLOOR = 8  # and the prompt an eighth


class Tokenizer(Protocol):
    """What text assembly needs of a Hugging Face tokenizer."""

    def __call__(self, text: list[str], **options: Any) -> Any:
        """A mapping whose ``input_ids`` hold one list of ids for each text."""
        ...


@dataclass(frozen=True)
class TokenizedRows:
    """Token ids of the three texts of N rows; equal texts share their ids."""

    texts: Ragged  # one entry per distinct text
    index: np.ndarray  # int64 [N, 3]: entry of prompt, answer A, answer B

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt, A and B, int64 ``[N, 3]``."""
        return np.asarray(self.texts.lengths[self.index])


def texts_of(rows: Rows) -> list[pa.ChunkedArray]:
    """Prompt, A and B as single strings. In a conversation of several turns each turn is headed by its number."""
    return [_numbered_turns(rows[name]) for name in TEXT_COLUMNS]


def _numbered_turns(turns: pa.ChunkedArray) -> pa.ChunkedArray:
    several = pc.greater(pc.list_value_length(turns), 1)
    if not pc.any(several).as_py():
        return pc.binary_join(drop_null_turns(turns), "")
    texts = [
        "\n\n".join(f"[{n}] {turn}" for n, turn in enumerate(row, start=1) if turn is not None)
        if len(row) > 1
        else (row[0] or "")
        for row in turns.to_pylist()
    ]
    return pa.chunked_array([pa.array(texts, pa.string())])


def tokenize_rows(rows: Rows, tokenizer: Tokenizer) -> TokenizedRows:
    """Tokenize every distinct text of ``rows`` once, without special tokens."""
    # Large strings: the texts of a big file together pass what one ordinary Arrow string array can hold.
    columns = [column.cast(pa.large_string()).combine_chunks() for column in texts_of(rows)]
    encoded = pa.concat_arrays(columns).dictionary_encode()
    distinct = encoded.dictionary
    pieces: list[np.ndarray] = []
    for start in range(0, len(distinct), TOKENIZER_CHUNK):
        texts = distinct[start : start + TOKENIZER_CHUNK].to_pylist()
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
        pieces += [np.asarray(row, dtype=np.int32) for row in ids["input_ids"]]
    index = encoded.indices.to_numpy().astype(np.int64).reshape(3, len(rows)).T
    return TokenizedRows(Ragged.from_rows(pieces), np.ascontiguousarray(index))


@dataclass(frozen=True)
class View:
    """One way to look at every row: a length limit and an order of the answers."""

    max_length: int
    swap: bool = False


@dataclass(frozen=True)
class Sequences:
    """Token sequences ready for batching."""

    ids: Ragged
    segment_ids: Ragged | None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Sequences:
        """Some sequences, in the order given."""
        return Sequences(self.ids.take(rows), None if self.segment_ids is None else self.segment_ids.take(rows))


@dataclass(frozen=True)
class TextFormat:
    """How the three texts become one sequence: fixed token ids around them, and what marks a cut.

    ``pieces[0] + prompt + pieces[1] + A + pieces[2] + B + pieces[3]``. ``segment_ids`` are the token type ids of the
    prompt, A and B parts (each with the piece before it; the last piece counts as B's), or None for models without.
    """

    name: str
    pieces: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    cut_mark: tuple[int, ...]
    segment_ids: tuple[int, int, int] | None = None

    @property
    def overhead(self) -> int:
        """Tokens that every sequence spends on the fixed pieces."""
        return sum(map(len, self.pieces))

    @property
    def shortest_budget(self) -> int:
        """Smallest length limit at which every text can be represented."""
        return self.overhead + ANSWER_FLOOR * 2

    def check_limit(self, max_length: int, setting: str) -> None:
        """Refuse a length limit that leaves no room for the texts.

        Raises:
            SettingsError: names the setting.
        """
        if max_length < self.shortest_budget:
            raise SettingsError(f"{setting}: {max_length} tokens are too few -> use {self.shortest_budget} or more")

    def allocate(self, lengths: np.ndarray, max_length: int) -> np.ndarray:
        """Share the budget out among the three texts.

        A text keeps its length if all fit. Otherwise prompt, A and B first get a floor (an eighth, a quarter and a
        quarter of the budget, or their length if less), so that no text, however long, crowds another out; the rest
        goes to them in proportion to what they still lack. Exchanging A and B exchanges their shares.

        Args:
            lengths: tokens of prompt, A and B, int ``[N, 3]``.
            max_length: limit of the whole sequence, special tokens included.

        Returns:
            Tokens each text may use, int64 ``[N, 3]``; at most ``lengths``; sums to at most the budget.

        Raises:
            SettingsError: ``max_length`` is too small for the fixed pieces and a few tokens of each text.
        """
        if max_length < self.shortest_budget:
            raise SettingsError(
                f"a length limit of {max_length} tokens is too small: use {self.shortest_budget} or more"
            )
        budget = max_length - self.overhead
        lengths = np.asarray(lengths, dtype=np.int64)
        floors = np.array([budget // PROMPT_FLOOR, budget // ANSWER_FLOOR, budget // ANSWER_FLOOR])
        share = np.minimum(lengths, floors)
        lacking = lengths - share
        rest = budget - share.sum(axis=1)
        total = lacking.sum(axis=1)
        fits = total <= rest
        share += np.where(fits[:, None], lacking, lacking * rest[:, None] // np.maximum(total, 1)[:, None])
        # Rounding leaves at most two tokens over; the prompt takes them, which keeps A and B alike.
        share[:, 0] += np.minimum(budget - share.sum(axis=1), lengths[:, 0] - share[:, 0])
        return share

    def sequences(self, tokens: TokenizedRows, index: np.ndarray, share: np.ndarray) -> Sequences:
        """Put sequences together.

        A text longer than its share keeps its head and its tail, with the cut mark between them where there is room.

        Args:
            tokens: where the texts are.
            index: entries of ``tokens.texts`` for prompt, first and second answer, int64 ``[K, 3]``.
            share: tokens each of them may use, from ``allocate``, int64 ``[K, 3]``.
        """
        lengths = tokens.texts.lengths[index]
        cut = share < lengths
        mark = np.where(cut & (share >= len(self.cut_mark) + 4), len(self.cut_mark), 0)
        tail = np.where(cut, (share - mark) // 3, 0)
        head = np.minimum(share, lengths) - mark - tail
        first = tokens.texts.offsets[index]
        last = first + lengths - tail

        fixed = [np.asarray(piece, np.int32) for piece in (*self.pieces, self.cut_mark)]
        pool = np.concatenate([tokens.texts.values, *fixed])
        fixed_starts = len(tokens.texts.values) + np.cumsum([0, *map(len, fixed)])
        starts, sizes = [], []
        for text in range(3):
            starts += [fixed_starts[text], first[:, text], fixed_starts[4], last[:, text]]
            sizes += [len(self.pieces[text]), head[:, text], mark[:, text], tail[:, text]]
        starts.append(fixed_starts[3])
        sizes.append(len(self.pieces[3]))
        parts = np.empty((2, len(index), len(starts)), dtype=np.int64)
        for part, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            parts[0, :, part], parts[1, :, part] = start, size
        ids = Ragged.from_parts(pool, *parts)
        if self.segment_ids is None:
            return Sequences(ids, None)
        spans = np.column_stack([parts[1, :, 0:4].sum(1), parts[1, :, 4:8].sum(1), parts[1, :, 8:].sum(1)])
        types = np.repeat(np.tile(np.asarray(self.segment_ids, np.int32), len(index)), spans.ravel())
        return Sequences(ids, Ragged(types, ids.offsets))

    def save(self, directory: Path) -> None:
        """Write ``text_format.json`` beside the model, so that inference assembles texts as training did."""
        document = {"schema_version": TEXT_FORMAT_VERSION, **asdict(self)}
        write_atomically(directory / TEXT_FORMAT_FILE, json.dumps(document, indent=1))

    @classmethod
    def load(cls, directory: Path) -> TextFormat:
        """Read ``text_format.json``.

        Raises:
            InputError: it is missing or broken.
        """
        path = directory / TEXT_FORMAT_FILE
        try:
            document = json.loads(path.read_text("utf-8"))
            if document["schema_version"] != TEXT_FORMAT_VERSION:
                raise ValueError(f"schema version {document['schema_version']} is not {TEXT_FORMAT_VERSION}")
            before_prompt, before_a, before_b, end = map(_token_ids, document["pieces"])
            segment_ids = document["segment_ids"]
            if segment_ids is not None:
                prompt, a, b = _token_ids(segment_ids)
                segment_ids = (prompt, a, b)
            pieces = (before_prompt, before_a, before_b, end)
            return cls(str(document["name"]), pieces, _token_ids(document["cut_mark"]), segment_ids)
        except FileNotFoundError as error:
            raise InputError(f"{path}: missing -> this is not a judge that this project trained") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: broken ({error!r}) -> train the model again") from error

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, token_types: int = 0) -> TextFormat:
        """The format for a classifier with this tokenizer.

        Encoders (with CLS and SEP tokens) separate the texts by SEP; others, decoders among them, name them in words.

        Args:
            tokenizer: a Hugging Face tokenizer.
            token_types: size of the model's token type vocabulary (0 or 1: none).
        """
        cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        if cls_id is not None and sep_id is not None:
            sep = (sep_id,)
            segment_ids = ((0, 0, 1) if token_types == 2 else (0, 1, 2)) if token_types >= 2 else None
            return cls("separators", ((cls_id,), sep, sep, sep), _ids(tokenizer, CUT_MARK), segment_ids)
        return cls._in_words(tokenizer, "named", "\n\nBetter:")

    @classmethod
    def for_label_tokens(cls, tokenizer: Any, words: Sequence[str]) -> TextFormat:
        """The format for a causal LM whose next token is the verdict: one of three label words for A, B and tie."""
        a, b, tie = words
        question = f"\n\nBetter: {a}, {b} or {tie} (tie)?\n"
        return cls._in_words(tokenizer, "label tokens", question)

    @classmethod
    def _in_words(cls, tokenizer: Any, name: str, question: str) -> TextFormat:
        start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        headings = ("Prompt:\n", "\n\nResponse A:\n", "\n\nResponse B:\n", question)
        prompt, a, b, end = (_ids(tokenizer, heading) for heading in headings)
        return cls(name, ((*start, *prompt), a, b, end), _ids(tokenizer, CUT_MARK))


def assemble(tokens: TokenizedRows, layout: TextFormat, views: list[View]) -> tuple[Sequences, np.ndarray]:
    """Sequences for every row and view; views that cut a row's texts alike, in the same order, share one.

    So a row whose texts fit a shorter limit stands once for all longer ones, and a row with equal answers once for
    both orders.

    Returns:
        The sequences, and their numbers by view and row, int64 ``[V, N]``.

    Raises:
        SettingsError: a view's limit is too small.
    """
    number = np.empty((len(views), len(tokens)), dtype=np.int64)
    recipes: list[np.ndarray] = []  # of each view, int64 [N, 6]: entries and shares of prompt, first, second answer
    fresh: list[np.ndarray] = []  # those rows of each view's recipes that no earlier view has
    count = 0
    for v, view in enumerate(views):
        order = [0, 2, 1] if view.swap else [0, 1, 2]
        share = layout.allocate(tokens.lengths, view.max_length)
        recipe = np.concatenate([tokens.index[:, order], share[:, order]], axis=1)
        new = np.ones(len(tokens), dtype=bool)
        for u, earlier in enumerate(recipes):
            same = new & (recipe == earlier).all(axis=1)
            number[v, same] = number[u, same]
            new &= ~same
        number[v, new] = count + np.arange(new.sum())
        count += int(new.sum())
        recipes.append(recipe)
        fresh.append(recipe[new])
    distinct = np.concatenate([np.zeros((0, 6), np.int64), *fresh])
    return layout.sequences(tokens, distinct[:, :3], distinct[:, 3:]), number


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _token_ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**31 for value in values):
        raise ValueError(f"{values!r} is not a list of token ids")
    return tuple(values)
