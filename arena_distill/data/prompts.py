"""Text assembly: token sequences for prompt, answer A and answer B under one shared length budget.

Each distinct text is tokenized once. Sequences for any length limit, and for the swapped order, are then put
together from the same token ids, so that swap(A, B) and every test-time length cost no further tokenizing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.records import TEXT_COLUMNS, Rows, drop_null_turns
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import InputError, SettingsError

TEXT_FORMAT_FILE = "text_format.json"
TEXT_FORMAT_VERSION = 1
TOKENIZER_CHUNK = 4096  # texts a call: large enough for the tokenizer's threads, small enough for memory

ANSWER_FLOOR = 4  # each answer may keep a quarter of the budget whatever the lengths of the other texts
PROMPT_FLOOR = 8  # and the prompt an eighth


class Tokenizer(Protocol):
    """What text assembly needs of a Hugging Face tokenizer."""

    def __call__(self, text: list[str], **options: Any) -> Any:
        """A mapping whose ``input_ids`` hold one list of ids for each text."""
        ...


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length in one flat array: row i is ``values[offsets[i] : offsets[i + 1]]``."""

    values: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [N + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return np.asarray(self.values[self.offsets[row] : self.offsets[row + 1]])

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, int64 ``[N]``."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Ragged:
        """Some rows, in the order given."""
        return Ragged.from_rows([self[row] for row in rows])

    @classmethod
    def from_rows(cls, rows: list[np.ndarray]) -> Ragged:
        """Concatenate ``rows`` (int arrays)."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate(rows).astype(np.int32, copy=False) if rows else np.zeros(0, np.int32)
        return cls(values, offsets)


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
    columns = [column.combine_chunks() for column in texts_of(rows)]
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

    def sequence(self, tokens: TokenizedRows, row: int, share: np.ndarray, swap: bool = False) -> np.ndarray:
        """Token ids of one row, int32 ``[length]``, with ``share`` from ``allocate``; ``swap`` exchanges A and B."""
        order = (0, 2, 1) if swap else (0, 1, 2)
        parts: list[np.ndarray] = []
        for piece, text in zip(self.pieces, order, strict=False):
            parts += [np.asarray(piece, np.int32), self._cut(tokens.texts[tokens.index[row, text]], int(share[text]))]
        parts.append(np.asarray(self.pieces[3], np.int32))
        return np.concatenate(parts)

    def _cut(self, ids: np.ndarray, keep: int) -> np.ndarray:
        """``ids`` in ``keep`` tokens: the head and the tail, with the cut mark between them where there is room."""
        if len(ids) <= keep:
            return ids
        mark = np.asarray(self.cut_mark if keep >= len(self.cut_mark) + 4 else (), np.int32)
        room = keep - len(mark)
        tail = room // 3
        return np.concatenate([ids[: room - tail], mark, ids[len(ids) - tail :]])

    def segments(self, share: np.ndarray, swap: bool = False) -> np.ndarray | None:
        """Token type ids that go with ``sequence``, int32 ``[length]``."""
        if self.segment_ids is None:
            return None
        prompt, first, second = (int(share[k]) for k in ((0, 2, 1) if swap else (0, 1, 2)))
        before, middle, last, end = map(len, self.pieces)
        return np.repeat(np.asarray(self.segment_ids, np.int32), [before + prompt, middle + first, last + second + end])

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
            segment_ids = document["segment_ids"]
            if document["schema_version"] != TEXT_FORMAT_VERSION or len(document["pieces"]) != 4:
                raise ValueError(f"schema version {document['schema_version']} is not {TEXT_FORMAT_VERSION}")
            return cls(
                document["name"],
                tuple(tuple(piece) for piece in document["pieces"]),  # type: ignore[arg-type]
                tuple(document["cut_mark"]),
                tuple(segment_ids) if segment_ids else None,
            )
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

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

        cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        if cls_id is not None and sep_id is not None:
            sep = (sep_id,)
            segment_ids = ((0, 0, 1) if token_types == 2 else (0, 1, 2)) if token_types >= 2 else None
            return cls("separators", ((cls_id,), sep, sep, sep), ids(" ... "), segment_ids)
        start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        pieces = ((*start, *ids("Prompt:\n")), ids("\n\nResponse A:\n"), ids("\n\nResponse B:\n"), ids("\n\nBetter:"))
        return cls("named", pieces, ids(" ... "))


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


def assemble(tokens: TokenizedRows, layout: TextFormat, views: list[View]) -> tuple[Sequences, np.ndarray]:
    """Sequences for every row and view, each distinct one once.

    A row whose texts fit a shorter limit has the same tokens at a longer one, and a row with equal answers has the
    same tokens in both orders: those views share one sequence.

    Returns:
        The distinct sequences, and their numbers by view and row, int64 ``[V, N]``.

    Raises:
        SettingsError: a view's limit is too small.
    """
    sequences: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    number = np.empty((len(views), len(tokens)), dtype=np.int64)
    shares = [layout.allocate(tokens.lengths, view.max_length) for view in views]
    for row in range(len(tokens)):
        seen: dict[bytes, int] = {}
        for v, view in enumerate(views):
            share = shares[v][row]
            ids = layout.sequence(tokens, row, share, view.swap)
            types = layout.segments(share, view.swap)
            key = hashlib.blake2b(ids.tobytes() + (b"" if types is None else types.tobytes()), digest_size=16).digest()
            if key not in seen:
                seen[key] = len(sequences)
                sequences.append(ids)
                if types is not None:
                    segments.append(types)
            number[v, row] = seen[key]
    return Sequences(Ragged.from_rows(sequences), Ragged.from_rows(segments) if segments else None), number
