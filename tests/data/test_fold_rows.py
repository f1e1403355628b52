"""What a fold trains on and holds out, and fold files that give back what was written into them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arena_distill.data.fold_files import fold_csv, read_fold_csv, write_fold_csv
from arena_distill.data.fold_rows import fold_rows
from arena_distill.data.folds import Folds, make_folds
from arena_distill.data.identity import rows_sha256
from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import as_extra, is_extra, merge
from arena_distill.data.records import TEXT_COLUMNS, Rows, targets
from arena_distill.runtime.errors import DataError, InputError, SettingsError
from tests.conftest import SAMPLE
from tests.data.preference_files import as_jsonl, row


@pytest.fixture(scope="module")
def base(small_train_csv: Path) -> Rows:
    return load_labelled(small_train_csv).rows


@pytest.fixture(scope="module")
def extra() -> Rows:
    return load_labelled(SAMPLE / "ultrafeedback.csv").rows


def loaded_from(tmp_path: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Rows:
    path = tmp_path / name
    path.write_bytes(as_jsonl(rows))
    return load_labelled(path).rows


# Which rows


def test_every_base_row_is_held_out_once_and_trained_on_in_all_other_folds(base: Rows, extra: Rows) -> None:
    folds = make_folds(base, 5)
    held_out = []
    for fold in range(5):
        parts = fold_rows(base, [extra], folds, fold)
        val = parts.val["base_idx"].to_pylist()
        train = parts.train["base_idx"].to_numpy()
        assert val == sorted(val)
        assert train[train >= 0].tolist() == sorted(set(range(len(base))) - set(val))
        held_out += val
    assert sorted(held_out) == list(range(len(base)))


def test_extra_rows_follow_the_base_rows_and_are_marked(base: Rows, extra: Rows) -> None:
    parts = fold_rows(base, [extra.slice(0, 10), extra.slice(10)], make_folds(base, 5), 2)
    count = int((~is_extra(parts.train)).sum())
    assert not is_extra(parts.train)[:count].any()
    assert is_extra(parts.train)[count:].all()
    assert not is_extra(parts.val).any()
    assert len(parts.train) - count + parts.held_out_extra == len(extra)


@pytest.mark.parametrize(
    "change", [str, str.upper, lambda prompt: f"\u3000{prompt}\n", lambda prompt: prompt.replace(" ", " \t")]
)
def test_an_extra_row_is_left_out_exactly_where_its_prompt_is_held_out(
    change: Callable[[str], str], base: Rows, tmp_path: Path
) -> None:
    prompts = [[change(turn or "") for turn in turns] for turns in base["prompt"].to_pylist()]
    rows = [row(number, prompt=turns, response_a=["x"], response_b=["y"]) for number, turns in enumerate(prompts)]
    copies = loaded_from(tmp_path, [*rows, row(999, prompt=["of nobody else"])])
    folds = make_folds(base, 4)
    for fold in range(4):
        parts = fold_rows(base, [copies], folds, fold)
        held = set(parts.val["prompt_hash"].to_pylist())
        assert not held & set(parts.train["prompt_hash"].to_pylist())
        assert parts.held_out_extra == sum(hash_ in held for hash_ in copies["prompt_hash"].to_pylist())
        assert parts.held_out_extra == len(parts.val)
        assert parts.train["prompt"].to_pylist()[-1] == ["of nobody else"]


@pytest.mark.parametrize("fold", [-1, 5, 100])
def test_a_fold_that_does_not_exist_is_a_settings_error(fold: int, base: Rows) -> None:
    with pytest.raises(SettingsError, match=rf"no fold {fold}: .* 0 … 4"):
        fold_rows(base, [], make_folds(base, 5), fold)


@pytest.mark.parametrize(("number", "side"), [(0, "training"), (1, "validation")])
def test_an_empty_part_is_refused(number: int, side: str, base: Rows, extra: Rows) -> None:
    all_in_one = Folds(np.zeros(len(base), np.int8), 2, 42, rows_sha256(base))
    with pytest.raises(DataError, match=rf"{side} part of fold {number}"):
        fold_rows(base, [extra], all_in_one, number)


def test_folds_of_other_rows_are_refused(base: Rows) -> None:
    with pytest.raises(DataError, match="made of other data"):
        fold_rows(base, [], make_folds(base.slice(1)), 0)


def test_folds_that_tear_a_prompt_apart_are_refused(base: Rows, tmp_path: Path) -> None:
    twice = loaded_from(tmp_path, [row(1, prompt="Hello  you"), row(2, prompt="hello you"), row(3)])
    torn = Folds(np.array([0, 1, 1], np.int8), 2, 42, rows_sha256(twice))
    with pytest.raises(DataError, match="prompts on both sides"):
        fold_rows(twice, [], torn, 0)


# Files


def there_and_back(rows: Rows, path: Path) -> None:
    write_fold_csv(rows, path)
    again = read_fold_csv(path)
    for name in rows.schema.names:
        assert again[name].to_pylist() == rows[name].to_pylist(), name
    assert again.schema.equals(rows.schema)
    plain = load_labelled(path).rows
    for name in (*TEXT_COLUMNS, "id", "label", "target", "row_hash", "prompt_hash"):
        assert plain[name].to_pylist() == rows[name].to_pylist(), name


def test_real_folds_come_back_from_their_files(base: Rows, extra: Rows, tmp_path: Path) -> None:
    parts = fold_rows(base, [extra], make_folds(base), 3)
    there_and_back(parts.train, fold_csv(tmp_path, 3, "train"))
    there_and_back(parts.val, fold_csv(tmp_path, 3, "val"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold_3_train.csv", "fold_3_val.csv"]


NASTY = [
    *('"', '""', '","', "\\", '\\"', "'", ",", ";", "\t", "\n", "\r\n", "\r", "\x0b", "\x7f", "\x1f", "\x04", "\x85"),
    *("\u2028", "\ufeff", "\ufffd", "😀", "👩‍👩‍👧", "e\u0301", "\u202e", "\U0010ffff", "{", "}", '}{"turns":["b"]'),
    *("", " ", "null", "None", "NaN", "true", "0", "-1", "1e5", "007", "[", "]", "[]", '["a"]', "[null]", '{"a": 1}'),
    *("\x04end of file\x04", "\\u0000", "\\ud800", "=1+1", "a" * 70_000),
]


def test_nasty_texts_come_back(tmp_path: Path) -> None:
    rows = [row(number, prompt=["q"], response_a=[text], response_b=[None, text]) for number, text in enumerate(NASTY)]
    rows += [row(900 + number, prompt=[text, "q"], response_a=None) for number, text in enumerate(NASTY)]
    rows += [row(1, id=text, response_a=number) for text, number in (('a"b', 1), ("a\nb", 2.5), ("a,b", True), ("", 0))]
    loaded = loaded_from(tmp_path, rows)
    assert len(loaded) == len(rows)
    there_and_back(loaded, tmp_path / "fold.csv")
    for number in range(0, len(loaded), 7):  # alone, a text decides which layout its column seems to have
        there_and_back(loaded.slice(number, 1), tmp_path / "one.csv")


turns = st.lists(st.none() | st.text(max_size=8) | st.sampled_from(NASTY[:-1]), min_size=1, max_size=3)
shares = st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 3).filter(lambda votes: sum(votes) > 0.01)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(turns, turns, turns, shares), min_size=1, max_size=6))
def test_any_texts_and_shares_come_back(tmp_path_factory: pytest.TempPathFactory, drawn: list[Any]) -> None:
    directory = tmp_path_factory.mktemp("drawn")
    rows = []
    for number, (prompt, a, b, votes) in enumerate(drawn):
        probabilities = {
            f"winner_{name}_prob": vote / sum(votes)
            for name, vote in zip(("model_a", "model_b", "tie"), votes, strict=True)
        }
        good = {key: value for key, value in row(number).items() if key != "winner"}
        rows.append({**good, "prompt": [*prompt, "q"], "response_a": a, "response_b": b, **probabilities})
    there_and_back(loaded_from(directory, rows), directory / "fold.csv")


def test_shares_come_back_to_the_last_bit_and_sum_to_1(tmp_path: Path) -> None:
    votes = np.random.default_rng(0).dirichlet([1, 1, 1], 3000)
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    good = {key: value for key, value in row().items() if key != "winner"}
    rows = loaded_from(tmp_path, [{**good, **dict(zip(names, vote, strict=True))} for vote in votes.tolist()])
    write_fold_csv(rows, tmp_path / "fold.csv")
    np.testing.assert_array_equal(targets(read_fold_csv(tmp_path / "fold.csv")), targets(rows))
    with (tmp_path / "fold.csv").open(newline="", encoding="utf-8") as stream:
        written = np.array([[float(line[name]) for name in names] for line in csv.DictReader(stream)])
    np.testing.assert_allclose(written.sum(axis=1), 1, rtol=0, atol=2e-9)


def test_rows_in_many_chunks_are_written_in_order(base: Rows, extra: Rows, tmp_path: Path) -> None:
    there_and_back(pa.concat_tables([base.slice(100, 3), as_extra(extra.slice(7, 5)), base.slice(0, 50)]),
                   tmp_path / "fold.csv")  # fmt: skip


def test_a_full_disk_is_refused_by_name(base: Rows) -> None:
    with pytest.raises(InputError, match=r"/dev/full: cannot be written .* -> make room"):
        write_fold_csv(base, Path("/dev/full"))


def change_cell(path: Path, number: int, column: str, value: str | None) -> None:
    """Change one cell (``number`` from 1), or with None leave out the column."""
    with path.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    for line in lines if value is None else []:
        del line[column]
    if value is not None:
        lines[number - 1][column] = value
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


@pytest.mark.parametrize(
    ("column", "value", "at", "message"),
    [
        ("row_hash", "0123456789abcdef", 7, "row_hash"),
        ("response_b", '["another answer"]', 7, "row_hash"),
        ("base_idx", "3.0", 7, "base_idx"),
        ("base_idx", "-2", 7, "base_idx"),
        ("base_idx", "", 7, "base_idx"),
        ("base_idx", "9" * 30, 7, "base_idx"),
        ("base_idx", "0", 7, "stands already in row 1"),
        ("base_idx", None, None, "no column base_idx"),
        ("row_hash", None, None, "no column row_hash"),
    ],
)
def test_a_changed_file_is_refused_with_row_and_column(
    column: str, value: str | None, at: int | None, message: str, base: Rows, tmp_path: Path
) -> None:
    path = tmp_path / "fold_0_val.csv"
    write_fold_csv(merge(base, [base.slice(0, 2)]), path)
    change_cell(path, 7, column, value)
    with pytest.raises(DataError, match=message) as caught:
        read_fold_csv(path)
    assert (caught.value.file, caught.value.row) == (str(path), at)
    assert "make the fold files again" in caught.value.hint


def test_a_row_that_lost_its_vote_is_refused(base: Rows, tmp_path: Path) -> None:
    path = tmp_path / "fold_0_val.csv"
    write_fold_csv(base, path)
    for name in ("winner_model_a", "winner_model_b", "winner_tie"):
        change_cell(path, 7, name, "")
    with pytest.raises(DataError, match=r"rows that cannot be used.*no label"):
        read_fold_csv(path)


def test_the_users_own_train_file_is_no_fold_file(small_train_csv: Path) -> None:
    with pytest.raises(DataError, match="no fold file of ours"):
        read_fold_csv(small_train_csv)
