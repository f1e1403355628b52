"""Text assembly under one length budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arena_distill.data.loading import load_test
from arena_distill.data.prompts import (
    TEXT_FORMAT_FILE,
    Sequences,
    TextFormat,
    TokenizedRows,
    View,
    assemble,
    texts_of,
    tokenize_rows,
)
from arena_distill.data.ragged import Ragged, gather
from arena_distill.data.records import TEXT_COLUMNS
from arena_distill.runtime.errors import InputError, SettingsError

SAMPLE = Path(__file__).parents[2] / "data" / "sample"

FORMATS = {
    "separators": TextFormat("separators", ((1,), (2,), (2,), (2,)), (7, 8, 9)),
    "two segments": TextFormat("separators", ((1,), (2,), (2,), (2,)), (7, 8, 9), (0, 0, 1)),
    "three segments": TextFormat("separators", ((1,), (2,), (2,), (2,)), (), (0, 1, 2)),
    "named": TextFormat("named", ((1, 3, 3), (4, 4, 4, 4), (5, 5, 5, 5), (6,)), (7,)),
}
PROMPT, A, B = 1000, 10_000, 100_000  # ids of the three texts lie above these, in order


def tokens_of(lengths: list[tuple[int, int, int]]) -> TokenizedRows:
    """Rows whose texts have these lengths; each token says which text it is of, and where in it."""
    distinct = {(start, n) if n else (0, 0) for row in lengths for start, n in zip((PROMPT, A, B), row, strict=True)}
    entry = {text: number for number, text in enumerate(sorted(distinct))}
    texts = Ragged.from_rows([np.arange(start, start + n, dtype=np.int32) for start, n in entry])
    index = [[entry[start, n] if n else entry[0, 0] for start, n in zip((PROMPT, A, B), row, strict=True)]
             for row in lengths]  # fmt: skip
    return TokenizedRows(texts, np.array(index, dtype=np.int64).reshape(-1, 3))


def swapped(tokens: TokenizedRows) -> TokenizedRows:
    """The same rows with A and B exchanged."""
    return TokenizedRows(tokens.texts, np.ascontiguousarray(tokens.index[:, [0, 2, 1]]))


def as_lists(sequences: Sequences, number: np.ndarray) -> list[tuple[list[int], list[int]]]:
    segments = sequences.segment_ids
    return [(sequences.ids[n].tolist(), [] if segments is None else segments[n].tolist()) for n in number]


size = st.one_of(st.integers(0, 12), st.integers(0, 90), st.integers(0, 900))
lengths = st.lists(st.tuples(size, size, size), min_size=1, max_size=8)
layouts = st.sampled_from(list(FORMATS.values()))
limits = st.one_of(st.integers(20, 60), st.integers(20, 1500))


@settings(max_examples=300)
@given(lengths, layouts, limits, st.booleans())
def test_budget_is_never_exceeded_and_every_text_is_represented(
    rows: list[tuple[int, int, int]], layout: TextFormat, limit: int, swap: bool
) -> None:
    sequences, number = assemble(tokens_of(rows), layout, [View(limit, swap)])
    assert number.tolist() == [list(range(len(rows)))]
    for row, (ids, _) in zip(rows, as_lists(sequences, number[0]), strict=True):
        assert len(ids) <= limit
        for start, end, length in ((PROMPT, A, row[0]), (A, B, row[1]), (B, 10 * B, row[2])):
            kept = [token for token in ids if start <= token < end]
            assert bool(kept) == bool(length)
            assert kept == sorted(set(kept)), "tokens keep their order and stand once"
            if kept:
                assert kept[0] == start, "the head is kept"
            if len(kept) >= 3 + len(layout.cut_mark):
                assert kept[-1] == start + length - 1, "the tail is kept"


@settings(max_examples=200)
@given(lengths, layouts, limits)
def test_texts_that_fit_are_whole_and_nothing_is_wasted(
    rows: list[tuple[int, int, int]], layout: TextFormat, limit: int
) -> None:
    tokens = tokens_of(rows)
    share = layout.allocate(tokens.lengths, limit)
    budget = limit - layout.overhead
    assert (share <= tokens.lengths).all()
    assert (share >= np.minimum(tokens.lengths, 1)).all()
    fits = tokens.lengths.sum(axis=1) <= budget
    np.testing.assert_array_equal(share[fits], tokens.lengths[fits])
    assert (share.sum(axis=1)[~fits] >= budget - 2).all()
    assert (share.sum(axis=1) <= budget).all()


@settings(max_examples=200)
@given(lengths, limits, limits)
def test_a_longer_limit_gives_no_text_less(rows: list[tuple[int, int, int]], one: int, other: int) -> None:
    tokens = tokens_of(rows)
    layout = FORMATS["separators"]
    less, more = (layout.allocate(tokens.lengths, limit) for limit in sorted((one, other)))
    assert (more >= less - 2).all(), "but for the tokens that rounding moves"


@settings(max_examples=200)
@given(lengths, limits)
def test_the_longer_answer_gets_no_smaller_share(rows: list[tuple[int, int, int]], limit: int) -> None:
    tokens = tokens_of(rows)
    share = FORMATS["named"].allocate(tokens.lengths, limit)
    longer_a = tokens.lengths[:, 1] >= tokens.lengths[:, 2]
    assert (share[longer_a, 1] >= share[longer_a, 2]).all()


def test_no_text_crowds_another_out() -> None:
    for huge in range(3):
        row = [200, 200, 200]
        row[huge] = 10**6
        share = FORMATS["separators"].allocate(np.array([row]), 404)
        assert (share[0] >= [50, 100, 100]).all()


@settings(max_examples=200)
@given(lengths, layouts, limits)
def test_the_swapped_view_is_the_view_of_the_swapped_rows(
    rows: list[tuple[int, int, int]], layout: TextFormat, limit: int
) -> None:
    tokens = tokens_of(rows)
    one, one_number = assemble(tokens, layout, [View(limit, swap=True)])
    other, other_number = assemble(swapped(tokens), layout, [View(limit)])
    assert as_lists(one, one_number[0]) == as_lists(other, other_number[0])


@settings(max_examples=200)
@given(lengths, layouts, st.lists(st.builds(View, limits, st.booleans()), min_size=1, max_size=5))
def test_views_together_are_each_view_alone(
    rows: list[tuple[int, int, int]], layout: TextFormat, views: list[View]
) -> None:
    tokens = tokens_of(rows)
    together, number = assemble(tokens, layout, views)
    assert sorted(set(number.ravel().tolist())) == list(range(len(together)))
    for view, numbers in zip(views, number, strict=True):
        alone, alone_number = assemble(tokens, layout, [view])
        assert as_lists(together, numbers) == as_lists(alone, alone_number[0])
    for row in number.T:
        distinct = {str(pair) for pair in as_lists(together, row)}
        assert len(distinct) == len(set(row.tolist())), "equal tokens stand once"


def test_short_rows_and_equal_answers_are_computed_once() -> None:
    tokens = tokens_of([(5, 5, 5), (5, 400, 5), (5, 400, 400)])
    tokens.index[0, 2] = tokens.index[0, 1]  # the first row's answers are equal
    views = [View(128), View(128, swap=True), View(256), View(256, swap=True)]
    number = assemble(tokens, FORMATS["separators"], views)[1]
    assert [len(set(column)) for column in number.T.tolist()] == [1, 4, 4]


@settings(max_examples=200)
@given(lengths, st.sampled_from(["two segments", "three segments"]), limits, st.booleans())
def test_segments_go_with_the_texts(rows: list[tuple[int, int, int]], name: str, limit: int, swap: bool) -> None:
    layout = FORMATS[name]
    assert layout.segment_ids is not None
    sequences, number = assemble(tokens_of(rows), layout, [View(limit, swap)])
    second, third = (B, A) if swap else (A, B)
    for ids, segments in as_lists(sequences, number[0]):
        assert len(ids) == len(segments)
        for start, segment in zip((PROMPT, second, third), layout.segment_ids, strict=True):
            assert {s for i, s in zip(ids, segments, strict=True) if start <= i < 9 * start} <= {segment}
        assert segments[0] == layout.segment_ids[0]
        assert segments[-1] == layout.segment_ids[2]


def test_a_cut_text_shows_head_mark_and_tail() -> None:
    sequences, _ = assemble(tokens_of([(0, 100, 3)]), FORMATS["separators"], [View(34)])
    ids = sequences.ids[0].tolist()
    kept = 34 - 4 - 3
    tail = (kept - 3) // 3
    head = kept - 3 - tail
    answer = [*range(A, A + head), 7, 8, 9, *range(A + 100 - tail, A + 100)]
    assert ids == [1, 2, *answer, 2, *range(B, B + 3), 2]


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
def test_the_shortest_budget_is_the_first_that_works(layout: TextFormat) -> None:
    tokens = tokens_of([(50, 50, 50)])
    assemble(tokens, layout, [View(layout.shortest_budget)])
    with pytest.raises(SettingsError, match=f"use {layout.shortest_budget} or more"):
        assemble(tokens, layout, [View(512), View(layout.shortest_budget - 1)])


def test_no_rows_make_no_sequences() -> None:
    tokens = TokenizedRows(Ragged.from_rows([]), np.zeros((0, 3), np.int64))
    for layout in FORMATS.values():
        sequences, number = assemble(tokens, layout, [View(64), View(64, swap=True)])
        assert (len(sequences), number.shape) == (0, (2, 0))


# Ragged arrays

rows_of_ints = st.lists(st.lists(st.integers(0, 99), max_size=5).map(lambda row: np.array(row, np.int32)), max_size=20)


@given(rows_of_ints, st.data())
def test_ragged_rows_come_back_as_they_went_in(rows: list[np.ndarray], data: st.DataObject) -> None:
    ragged = Ragged.from_rows(rows)
    assert [ragged[n].tolist() for n in range(len(ragged))] == [row.tolist() for row in rows]
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=30)) if rows else []
    taken = ragged.take(np.array(chosen, dtype=np.int64))
    assert [taken[n].tolist() for n in range(len(taken))] == [rows[n].tolist() for n in chosen]


def test_gathering_more_than_one_portion_at_a_time() -> None:
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 1000, size=50_000).astype(np.int32)
    starts, sizes = rng.integers(0, 40_000, size=400), rng.integers(0, 9000, size=400)
    sizes[::7] = 0
    expected = np.concatenate([pool[start : start + n] for start, n in zip(starts, sizes, strict=True)])
    np.testing.assert_array_equal(gather(pool, starts, sizes), expected)


# Tokenizing


class Recorder:
    """A real WordPiece or byte-level tokenizer that remembers which texts it was given."""

    def __init__(self, kind: str) -> None:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        texts = ["the capital of France is Paris", "what is 2 + 2 ?", "Prompt: Response A: B Better ... [1]"]
        if kind == "encoder":
            self.backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            self.backend.normalizer = normalizers.BertNormalizer(lowercase=True)
            self.backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            trainer: Any = trainers.WordPieceTrainer(
                vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
            )
        else:
            self.backend = Tokenizer(models.BPE())
            self.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            trainer = trainers.BpeTrainer(
                vocab_size=400, special_tokens=["<bos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )  # fmt: skip
        self.backend.train_from_iterator(texts, trainer)
        self.cls_token_id = self.backend.token_to_id("[CLS]")
        self.sep_token_id = self.backend.token_to_id("[SEP]")
        self.bos_token_id = self.backend.token_to_id("<bos>")
        self.seen: list[str] = []

    def __call__(self, text: Any, **options: Any) -> dict[str, Any]:
        assert options["add_special_tokens"] is False
        if isinstance(text, str):
            return {"input_ids": self.backend.encode(text, add_special_tokens=False).ids}
        self.seen += text
        return {"input_ids": [one.ids for one in self.backend.encode_batch(text, add_special_tokens=False)]}


def turns_table(prompt: list[Any], a: list[Any], b: list[Any]) -> pa.Table:
    kind = pa.list_(pa.string())
    return pa.table({name: pa.array(v, kind) for name, v in zip(TEXT_COLUMNS, (prompt, a, b), strict=True)})


def test_several_turns_show_their_numbers_and_skip_nulls() -> None:
    rows = turns_table([["one"], ["q1", "q2", "q3"]], [[None], ["x", None, "z"]], [[""], [None, None, None]])
    for table in (rows, pa.concat_tables([rows.slice(0, 1), rows.slice(1)])):
        assert [column.to_pylist() for column in texts_of(table)] == [
            ["one", "[1] q1\n\n[2] q2\n\n[3] q3"],
            ["", "[1] x\n\n[3] z"],
            ["", ""],
        ]


def test_equal_texts_are_tokenized_once_and_without_special_tokens() -> None:
    tokenizer = Recorder("encoder")
    rows = turns_table([["what is 2 + 2 ?"]] * 3, [["4"], ["5"], ["4"]], [["5"], ["4"], [None]])
    tokens = tokenize_rows(rows, tokenizer)
    assert sorted(tokenizer.seen) == ["", "4", "5", "what is 2 + 2 ?"]
    for row, texts in enumerate(zip(*(column.to_pylist() for column in texts_of(rows)), strict=True)):
        for place, text in enumerate(texts):
            ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
            assert tokens.texts[tokens.index[row, place]].tolist() == ids


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_sample_rows_assemble_alike_every_time_and_in_both_orders(kind: str) -> None:
    tokenizer = Recorder(kind)
    rows = load_test(SAMPLE / "test.csv").rows
    layout = TextFormat.for_tokenizer(tokenizer)
    names = [
        name if name == "prompt" else {"response_a": "response_b"}.get(name, "response_a") for name in TEXT_COLUMNS
    ]
    mirrored = rows.select(names).rename_columns(list(TEXT_COLUMNS))
    for limit in (64, 300):
        one, number = assemble(tokenize_rows(rows, tokenizer), layout, [View(limit), View(limit, swap=True)])
        again, again_number = assemble(tokenize_rows(rows, tokenizer), layout, [View(limit), View(limit, swap=True)])
        other, other_number = assemble(
            tokenize_rows(mirrored, tokenizer), layout, [View(limit, swap=True), View(limit)]
        )
        for v in range(2):
            assert as_lists(one, number[v]) == as_lists(again, again_number[v])
            assert as_lists(one, number[v]) == as_lists(other, other_number[v])
        assert one.ids.lengths.max() == limit


def test_an_encoder_separates_and_a_decoder_names_the_texts() -> None:
    encoder, decoder = Recorder("encoder"), Recorder("decoder")
    cls_id, sep = encoder.cls_token_id, encoder.sep_token_id
    for types, segments in ((0, None), (1, None), (2, (0, 0, 1)), (3, (0, 1, 2))):
        layout = TextFormat.for_tokenizer(encoder, types)
        assert layout.pieces == ((cls_id,), (sep,), (sep,), (sep,))
        assert layout.segment_ids == segments
    layout = TextFormat.for_tokenizer(decoder)
    assert [decoder.backend.decode(list(piece)).replace("Ġ", " ").replace("Ċ", "\n").replace("  ", " ")
            for piece in layout.pieces]  # fmt: skip
    assert layout.pieces[0][0] == decoder.bos_token_id
    assert layout.segment_ids is None
    assert layout.cut_mark


# text_format.json


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
def test_text_format_file_round_trip(layout: TextFormat, tmp_path: Path) -> None:
    layout.save(tmp_path)
    assert TextFormat.load(tmp_path) == layout


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"pieces": [[1], [2], [3]]},
        {"pieces": [[1], [2], [3], "4"]},
        {"pieces": [[1], [2], [3], [-4]]},
        {"pieces": None},
        {"cut_mark": [0.5]},
        {"cut_mark": "..."},
        {"segment_ids": [0, 1]},
        {"segment_ids": "abc"},
        {"segment_ids": None, "name": None, "schema_version": "1"},
    ],
    ids=str,
)
def test_broken_text_format_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    FORMATS["two segments"].save(tmp_path)
    path = tmp_path / TEXT_FORMAT_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match="broken"):
        TextFormat.load(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", "{"])
def test_a_file_that_is_no_text_format_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / TEXT_FORMAT_FILE).write_text(content)
    with pytest.raises(InputError, match="broken"):
        TextFormat.load(tmp_path)


def test_missing_text_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        TextFormat.load(tmp_path)
