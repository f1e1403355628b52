"""What makes prompts and rows the same, folds and splits that respect it, and merging of extra data."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arena_distill.data.folds import (
    Folds,
    group_kinds,
    grouped_stratified_folds,
    load_folds,
    make_folds,
    save_folds,
)
from arena_distill.data.identity import prompt_hashes, row_hashes, rows_sha256
from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import (
    as_extra,
    first_of_each_prompt,
    is_extra,
    merge,
    shares_prompt,
    shuffle_extra_ab,
)
from arena_distill.data.records import SCHEMA, SWAPPED, TEXT_COLUMNS, Rows, targets
from arena_distill.data.splits import CALIBRATION, HOLDOUT, SPLIT_FILE, TRAIN, load_split, make_split
from arena_distill.runtime.errors import DataError, InputError, SettingsError
from tests.data.preference_files import as_csv, as_jsonl, row

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
TURNS = pa.list_(pa.string())


def prompt_hash(*turns: str | None) -> int:
    return int(prompt_hashes(pa.array([list(turns)], TURNS))[0].as_py())


def row_hash(prompt: list[str | None], a: list[str | None], b: list[str | None]) -> str:
    texts = {name: pa.array([turns], TURNS) for name, turns in zip(TEXT_COLUMNS, (prompt, a, b), strict=True)}
    return str(row_hashes(texts)[0].as_py())


def rows_of(prompts: list[str], labels: list[int] | None = None, **changes: Any) -> Rows:
    """Canonical rows with these prompts."""
    count = len(prompts)
    texts = {
        "prompt": pa.array([[prompt] for prompt in prompts], TURNS),
        "response_a": pa.array([[f"a{n}"] for n in range(count)], TURNS),
        "response_b": pa.array([[f"b{n}"] for n in range(count)], TURNS),
    }
    columns = {
        "id": pa.array([str(n) for n in range(count)]),
        **texts,
        "label": pa.array(labels if labels is not None else [0] * count, pa.int8()),
        "target": pa.nulls(count, SCHEMA.field("target").type),
        "source": pa.array(["x"] * count),
        "base_idx": pa.array(np.arange(count)),
        "row_hash": row_hashes(texts),
        "prompt_hash": prompt_hashes(texts["prompt"]),
    }
    return pa.table({**columns, **changes}, schema=SCHEMA)


WHITE = ["\t", "\n", "\r\n", "\v", "\f", "\x85", "\u00a0", "\u2003", "\u2028", "\u202f", "\u3000", "  ", " \u00a0 \n"]


@pytest.mark.parametrize("white", WHITE, ids=ascii)
def test_all_white_space_is_alike_in_prompts(white: str) -> None:
    same = prompt_hash("how are you")
    assert prompt_hash(f"how{white}are you") == same
    assert prompt_hash(f"{white}how are you{white}") == same
    assert prompt_hash("how", "are you") == prompt_hash(f"how{white}", f"{white}are you")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ärger in Ñandú", unicodedata.normalize("NFD", "Ärger in Ñandú")),
        ("What IS this?", "what is THIS?"),
        ("ПРИВЕТ", "привет"),
        ("가", unicodedata.normalize("NFD", "가")),
        (unicodedata.normalize("NFD", "É"), "é"),
    ],
)
def test_prompts_that_differ_in_case_or_composition_are_alike(one: str, other: str) -> None:
    assert prompt_hash(one) == prompt_hash(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("2 + 2",), ("2 + 3",)),
        (("to day",), ("today",)),
        (("resume",), ("résumé",)),
        (("a b",), ("a", "b")),
        (("a", "b"), ("b", "a")),
        (("a\x1fb",), ("a", "b")),
        (("a\x1b", "b"), ("a\x1b\x1fb",)),
        (("a?",), ("a",)),
    ],
    ids=ascii,
)
def test_prompts_that_differ_in_words_or_turns_are_not_alike(one: tuple[str], other: tuple[str]) -> None:
    assert prompt_hash(*one) != prompt_hash(*other)


@given(st.text(), st.sampled_from(WHITE), st.sampled_from(["NFC", "NFD"]))
def test_normalising_forgives_composition_and_outer_white_space(text: str, white: str, form: Any) -> None:
    assert prompt_hash(text) == prompt_hash(white + unicodedata.normalize(form, text) + white)


turn_lists = st.lists(st.one_of(st.none(), st.text("ab\x1b\x1e\x1f ", max_size=3)), min_size=1, max_size=3)
three_texts = st.tuples(turn_lists, turn_lists, turn_lists)


@settings(max_examples=400)
@given(three_texts, three_texts)
def test_row_hash_differs_exactly_when_a_text_or_a_turn_boundary_does(one: Any, other: Any) -> None:
    assert (row_hash(*one) == row_hash(*other)) == (one == other)


def test_row_hash_does_not_depend_on_the_rows_around_it() -> None:
    rows = load_labelled(SAMPLE / "train.csv").rows
    for start in (0, 7, 1499):
        one = rows.slice(start, 1).combine_chunks()
        texts = {name: one[name].chunk(0) for name in TEXT_COLUMNS}
        assert row_hashes(texts).to_pylist() == one["row_hash"].to_pylist()
        assert prompt_hashes(texts["prompt"]).to_pylist() == one["prompt_hash"].to_pylist()


def test_no_rows_have_no_hashes() -> None:
    nothing = pa.array([], TURNS)
    assert len(prompt_hashes(nothing)) == len(row_hashes(dict.fromkeys(TEXT_COLUMNS, nothing))) == 0


# Folds


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Labels and groups of many rows with many repeated prompts, a number of folds and a seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(200, 1500))
    n_folds = draw(st.integers(2, 8))
    groups = rng.integers(0, max(n_folds * 10, count // draw(st.integers(1, 4))), size=count)
    shares = draw(st.sampled_from([(0.35, 0.35, 0.3), (0.6, 0.39, 0.01), (0.0, 0.5, 0.5), (1.0, 0.0, 0.0)]))
    return rng.choice(3, size=count, p=shares), groups, n_folds, draw(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(labelled_groups())
def test_folds_keep_groups_whole_and_every_labels_share_equal(data: tuple[np.ndarray, np.ndarray, int, int]) -> None:
    labels, groups, n_folds, seed = data
    fold = grouped_stratified_folds(labels, groups, n_folds, seed)
    assert fold.shape == labels.shape
    assert set(fold.tolist()) == set(range(n_folds))
    folds_of_group = {(g, f) for g, f in zip(groups.tolist(), fold.tolist(), strict=True)}
    assert len(folds_of_group) == len(set(groups.tolist()))
    counts = np.array([np.bincount(labels[fold == f], minlength=3) for f in range(n_folds)])
    largest = np.bincount(groups).max()
    assert (np.abs(counts - counts.mean(axis=0)) <= 1 + largest).all(), counts
    np.testing.assert_array_equal(fold, grouped_stratified_folds(labels, groups, n_folds, seed))


def test_folds_of_distinct_prompts_differ_by_at_most_one_row_a_label() -> None:
    labels = np.random.default_rng(0).choice(3, size=5003)
    fold = grouped_stratified_folds(labels, np.arange(5003), 5, seed=1)
    counts = np.array([np.bincount(labels[fold == f]) for f in range(5)])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_another_seed_gives_other_folds() -> None:
    rows = load_labelled(SAMPLE / "train.csv").rows
    one, other = make_folds(rows, 5, seed=1).fold, make_folds(rows, 5, seed=2).fold
    assert 0.7 < (one != other).mean() < 0.9


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 2, 2**31, 2**32 - 1, 2**32])] * 3), min_size=1, max_size=30))
def test_groups_are_of_one_kind_exactly_when_their_label_counts_are_equal(counts: list[tuple[int, ...]]) -> None:
    """Counts multiplied up to one key would pass int64 here and let different groups look alike."""
    kinds = group_kinds(np.array(counts, dtype=np.int64))
    assert len(set(zip(counts, kinds.tolist(), strict=True))) == len(set(counts)) == len(set(kinds.tolist()))


def test_one_prompt_may_hold_nearly_all_rows() -> None:
    labels = np.concatenate([np.full(300_000, 2), np.repeat([0, 1, 2], 20)])
    groups = np.concatenate([np.zeros(300_000, np.int64), 1 + np.arange(60)])
    fold = grouped_stratified_folds(labels, groups, 3, seed=0)
    small = fold[300_000:]
    assert len(np.unique(fold[:300_000])) == 1
    counts = np.array([np.bincount(labels[300_000:][small == f], minlength=3) for f in range(3)])
    assert (np.ptp(counts, axis=0) <= 2).all()


@pytest.mark.parametrize(("groups", "n_folds"), [([0, 0, 1], 3), ([0, 1], 1), ([0, 1], 101), ([], 2)])
def test_impossible_folds_are_settings_errors(groups: list[int], n_folds: int) -> None:
    with pytest.raises(SettingsError):
        grouped_stratified_folds(np.zeros(len(groups), np.int64), np.array(groups), n_folds, seed=0)


def test_folds_do_not_depend_on_how_the_file_is_stored(tmp_path: Path) -> None:
    rows = [row(n, prompt=f"question {n % 70}") for n in range(200)]
    (tmp_path / "x.csv").write_bytes(as_csv(rows))
    (tmp_path / "x.jsonl").write_bytes(as_jsonl(rows))
    one, other = (make_folds(load_labelled(tmp_path / name).rows) for name in ("x.csv", "x.jsonl"))
    np.testing.assert_array_equal(one.fold, other.fold)
    assert one.rows_sha256 == other.rows_sha256


def test_folds_file_round_trip(tmp_path: Path) -> None:
    data, path = SAMPLE / "train.csv", tmp_path / "folds.json"
    rows = load_labelled(data).rows
    folds = make_folds(rows, 4, seed=9)
    save_folds(folds, path, data)
    again = load_folds(path)
    np.testing.assert_array_equal(again.fold, folds.fold)
    assert (again.n_folds, again.seed, again.rows_sha256) == (4, 9, rows_sha256(rows))
    again.check(rows, path)


@pytest.mark.parametrize("change", ["fewer rows", "other order", "other text"])
def test_folds_of_other_data_are_refused(change: str, tmp_path: Path) -> None:
    rows = rows_of([f"p{n}" for n in range(20)])
    others = {
        "fewer rows": rows.slice(0, 19),
        "other order": rows.take(np.arange(20)[::-1]),
        "other text": rows_of([f"p{n}" for n in range(19)] + ["P19"]),
    }
    with pytest.raises(DataError, match="made of other data") as caught:
        make_folds(rows).check(others[change], tmp_path / "folds.json")
    assert caught.value.file == str(tmp_path / "folds.json")


GOOD_FOLDS = {"schema_version": 1, "n_folds": 2, "seed": 0, "data": {"rows_sha256": "x"}, "fold": [0, 1]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        b"\xff\xfe",
        {**GOOD_FOLDS, "schema_version": 2},
        {**GOOD_FOLDS, "fold": []},
        {**GOOD_FOLDS, "fold": [0, 2]},
        {**GOOD_FOLDS, "fold": [0, -1]},
        {**GOOD_FOLDS, "fold": [0, 0.5]},
        {**GOOD_FOLDS, "fold": [0, 999]},
        {**GOOD_FOLDS, "fold": [[0], [1]]},
        {**GOOD_FOLDS, "fold": "01"},
        {**GOOD_FOLDS, "n_folds": None},
        {key: value for key, value in GOOD_FOLDS.items() if key != "data"},
    ],
    ids=lambda content: str(content)[:60],
)
def test_broken_folds_files_are_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    data = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError) as caught:
        load_folds(path)
    assert caught.value.file == str(path)
    assert caught.value.hint


def test_missing_folds_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folds file"):
        load_folds(tmp_path / "folds.json")


def test_folds_are_a_plain_record() -> None:
    folds = make_folds(rows_of(["a", "b", "c"]), n_folds=2)
    assert isinstance(folds, Folds)
    assert folds.fold.dtype == np.int8


# Splits


def test_split_parts_are_disjoint_grouped_and_a_tenth_each() -> None:
    rows = load_labelled(SAMPLE / "train.csv").rows
    split = make_split(rows, seed=3, file=SAMPLE / "train.csv")
    parts = [split.select(rows, part) for part in (TRAIN, CALIBRATION, HOLDOUT)]
    ids = [id_ for part in parts for id_ in part["base_idx"].to_pylist()]
    assert sorted(ids) == list(range(1500))
    for one in range(3):
        assert parts[one]["base_idx"].to_pylist() == sorted(parts[one]["base_idx"].to_pylist())
        for other in range(one):
            assert not shares_prompt(parts[one], parts[other]).any()
    assert all(abs(len(part) - size) <= 2 for part, size in zip(parts, (1200, 150, 150), strict=True))
    share = [Counter(part["label"].to_pylist())[2] / len(part) for part in parts]
    np.testing.assert_allclose(share, share[0], atol=0.01)


def test_split_round_trip_and_refusal_of_other_data(tmp_path: Path) -> None:
    rows = rows_of([f"p{n}" for n in range(30)])
    split = make_split(rows, seed=0, file=tmp_path / "train.csv")
    split.save(tmp_path)
    np.testing.assert_array_equal(load_split(tmp_path, rows, tmp_path / "train.csv").part, split.part)
    for other in (rows.slice(1), rows.take(np.arange(30)[::-1])):
        with pytest.raises(DataError, match="not the 30 rows"):
            load_split(tmp_path, other, tmp_path / "train.csv")


@pytest.mark.parametrize("content", [None, "", "[]", '{"schema_version": 2}', '{"schema_version": 1, "rows": 3}', "\0"])
def test_missing_or_broken_split_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / SPLIT_FILE).write_text(content)
    with pytest.raises(InputError, match="missing" if content is None else "broken"):
        load_split(tmp_path, rows_of(["a", "b", "c"]), tmp_path / "train.csv")


def test_split_needs_three_prompts(tmp_path: Path) -> None:
    split = make_split(rows_of(["a", "b", "c", "A "]), seed=0, file=tmp_path)
    assert split.part[0] == split.part[3]
    assert set(split.part.tolist()) == {TRAIN, CALIBRATION, HOLDOUT}
    with pytest.raises(DataError, match="2 distinct prompts"):
        make_split(rows_of(["a", "b", "A"]), seed=0, file=tmp_path)


# Merging


def test_merged_rows_are_base_first_and_extra_rows_are_marked() -> None:
    base, one, two = rows_of(["a", "b"]), rows_of(["c"]), rows_of(["d", "e"])
    merged = merge(base, [one, two])
    assert merged["prompt"].to_pylist() == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert merged["base_idx"].to_pylist() == [0, 1, -1, -1, -1]
    assert is_extra(merged).tolist() == [False, False, True, True, True]
    assert merged.schema.equals(SCHEMA)


def test_deduplication_keeps_the_first_row_of_a_prompt_and_base_before_extra() -> None:
    merged = merge(rows_of(["a", "b", " A"]), [rows_of(["B", "c", "C\n"])])
    assert first_of_each_prompt(merged).tolist() == [True, True, False, False, True, False]


def test_extra_rows_with_held_out_prompts_are_found() -> None:
    extra = rows_of(["What  is it?", "other", "\u3000WHAT IS IT? "])
    assert shares_prompt(extra, rows_of(["what is it?"])).tolist() == [True, False, True]


def test_sample_extra_rows_that_repeat_train_prompts_are_found() -> None:
    train, extra = (load_labelled(SAMPLE / f"{name}.csv").rows for name in ("train", "ultrafeedback"))
    assert shares_prompt(extra, train).sum() == 12


def test_shuffling_swaps_answers_labels_and_targets_of_extra_rows_only() -> None:
    soft = pa.array([[0.5, 0.3, 0.2], None] * 100, SCHEMA.field("target").type)
    extra = rows_of([f"e{n}" for n in range(200)], [0, 1] * 100, target=soft)
    rows = merge(rows_of([f"b{n}" for n in range(50)], [0] * 50), [extra])
    shuffled, count = shuffle_extra_ab(rows, seed=5)
    before, after = targets(rows), targets(shuffled)
    changed = np.array(rows["response_a"].to_pylist()) != np.array(shuffled["response_a"].to_pylist())
    changed = changed.ravel()
    assert changed.sum() == count
    assert 60 < count < 140
    assert not changed[:50].any()
    np.testing.assert_array_equal(after[changed], before[changed][:, SWAPPED])
    np.testing.assert_array_equal(after[~changed], before[~changed])
    flipped = np.array(SWAPPED)[rows["label"].to_numpy()]
    np.testing.assert_array_equal(shuffled["label"].to_numpy(), np.where(changed, flipped, rows["label"].to_numpy()))
    for one, other in (("response_a", "response_b"), ("response_b", "response_a")):
        expected = [(o if c else s)[0] for o, s, c in zip(rows[other].to_pylist(), rows[one].to_pylist(), changed,
                                                         strict=True)]  # fmt: skip
        assert [turns[0] for turns in shuffled[one].to_pylist()] == expected
    assert shuffled["target"].is_null().to_pylist() == rows["target"].is_null().to_pylist()
    assert shuffled["row_hash"].to_pylist() == rows["row_hash"].to_pylist()
    assert shuffled.schema.equals(SCHEMA)


def test_shuffling_depends_on_the_seed_and_nothing_else() -> None:
    extra = as_extra(rows_of([f"e{n}" for n in range(100)]))
    one = shuffle_extra_ab(extra, seed=1)[0]["response_a"].to_pylist()
    assert shuffle_extra_ab(extra, seed=1)[0]["response_a"].to_pylist() == one
    assert shuffle_extra_ab(extra, seed=2)[0]["response_a"].to_pylist() != one
    behind_base = merge(rows_of(["b"]), [extra])
    assert shuffle_extra_ab(behind_base, seed=1)[0]["response_a"].to_pylist()[1:] == one
    in_chunks = pa.concat_tables([extra.slice(0, 33), extra.slice(33)])
    assert shuffle_extra_ab(in_chunks, seed=1)[0]["response_a"].to_pylist() == one


def test_without_extra_rows_nothing_is_shuffled() -> None:
    rows = rows_of(["a", "b"])
    assert shuffle_extra_ab(rows, seed=0) == (rows, 0)
