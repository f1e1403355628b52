"""What is done many rows at a time, or by several threads, comes out as one row after the other would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arena_distill.data import cells, csv_file, identity, in_order, loading, raw
from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import keep_rows
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError
from tests.data.preference_files import as_csv, as_jsonl, row

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# White space, separators, letters that combine, decompose, or stand next to those that do.
ODD = " \t\n\v\f\r\x1b\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2028\u3000"
ODD += "ae\u0301\u0323éÅ\u2126\u212b\u0387’ру가각か\u3099漢豈İΣ😀"
texts = st.text(st.one_of(st.sampled_from(ODD), st.characters(codec="utf-8", exclude_characters="\0")), max_size=12)
columns = st.lists(texts, max_size=6)


@PROPERTY
@given(columns, st.integers(0, 2))
def test_prompts_are_normalised_as_if_all_took_care(prompts: list[str], skipped: int) -> None:
    column = pa.array(prompts, pa.string())[skipped:]
    careful = pc.utf8_lower(pc.utf8_normalize(column, "NFC"))
    careful = pc.replace_substring_regex(careful, r"[\s\v\x{85}\p{Z}]+", " ")
    careful = pc.utf8_trim(pc.replace_substring_regex(careful, " ?\x1f ?", "\x1f"), " ")
    assert identity.normalise_prompt(column).to_pylist() == careful.to_pylist()


@PROPERTY
@given(st.lists(st.tuples(*[st.lists(st.one_of(st.none(), texts), min_size=1, max_size=3)] * 3), max_size=5))
def test_row_hash_is_blake2b_of_the_joined_turns(rows: list[tuple[list[str | None], ...]]) -> None:
    def joined(turns: list[str | None]) -> str:
        kept = ("\0" if turn is None else "".join("\x1b" * (c in "\0\x1b\x1e\x1f") + c for c in turn) for turn in turns)
        return "\x1f".join(kept)

    names = ("prompt", "response_a", "response_b")
    table = {name: pa.array([one[n] for one in rows], cells.TURNS) for n, name in enumerate(names)}
    wanted = [hashlib.blake2b("\x1e".join(map(joined, one)).encode(), digest_size=8).hexdigest() for one in rows]
    assert identity.row_hashes(table).to_pylist() == wanted


def test_rows_hashed_in_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = pa.array([[f"text {n}"] for n in range(10)], cells.TURNS)
    table = {"prompt": turns, "response_a": turns, "response_b": turns}
    whole = identity.row_hashes(table)
    monkeypatch.setattr(identity, "_HASH_ROWS", 3)
    assert identity.row_hashes(table).equals(whole)


turn = st.one_of(st.none(), texts, st.just("a\0b"))
clean = st.lists(turn, min_size=1, max_size=3).map(lambda turns: json.dumps(turns, ensure_ascii=False))
dirty = st.sampled_from(["", "\xa0", "null", "plain", "['a']", "[1, true]", '["\\ud800"]', "[]", '["a\tb"]', ' ["a"]'])


@PROPERTY
@given(st.lists(st.one_of(clean, clean, clean, dirty), min_size=1, max_size=12))
def test_cells_that_take_care_change_nothing_for_their_neighbours(column: list[str]) -> None:
    together, apart = LoadSummary(""), LoadSummary("")
    small, cells.SMALL_PIECE = cells.SMALL_PIECE, 2
    try:
        whole = cells.TextColumn(Path("f"), "prompt", together, holds_lists=True).turns(pa.array(column), 0)
    finally:
        cells.SMALL_PIECE = small
    one_by_one = cells.TextColumn(Path("f"), "prompt", apart, holds_lists=True)._parse_one_by_one
    assert whole.to_pylist() == one_by_one(pa.array([cell.replace("\0", "") for cell in column]), 0).to_pylist()
    together.repairs.pop(cells.NUL_BYTE, None)
    apart.repairs.pop(cells.NUL_BYTE, None)
    assert together.repairs == apart.repairs


@pytest.mark.parametrize("place", [1, 500, 999, 1000])
def test_broken_cell_is_named_by_its_row_in_a_large_batch(place: int) -> None:
    column = ['["a"]'] * 1000
    column[place - 1] = '["a'
    with pytest.raises(DataError) as caught:
        cells.TextColumn(Path("f"), "prompt", LoadSummary(""), holds_lists=True).turns(pa.array(column), 70)
    assert (caught.value.row, caught.value.column) == (70 + place, "prompt")


@PROPERTY
@given(st.lists(st.lists(st.one_of(st.none(), texts), min_size=1, max_size=3), max_size=6), st.integers(0, 2))
def test_blank_texts_are_found_as_by_trimming_all(rows: list[list[str | None]], skipped: int) -> None:
    turns = pa.array(rows, cells.TURNS)[skipped:]
    joined = pa.array(["".join(one or "" for one in row) for row in rows[skipped:]], pa.string())
    assert loading._is_blank(turns).tolist() == pc.equal(pc.utf8_trim_whitespace(joined), "").to_pylist()


answers = st.lists(st.one_of(st.none(), st.sampled_from(["", "a", "b", "aa", "é"])), min_size=1, max_size=3)


@PROPERTY
@given(st.lists(st.tuples(answers, answers), max_size=6))
def test_equal_answers_are_counted_as_by_comparing_all(pairs: list[tuple[list[str | None], list[str | None]]]) -> None:
    a, b = (pa.array([pair[n] for pair in pairs], cells.TURNS) for n in (0, 1))
    equal = sum([turn or "" for turn in one] == [turn or "" for turn in other] for one, other in pairs)
    assert loading._count_equal(a, b) == equal


@PROPERTY
@given(data=st.one_of(texts.map(str.encode), st.binary(max_size=12)), size=st.integers(1, 8))
def test_blocks_may_cut_characters(data: bytes, size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" + data)
    with raw.ByteStream(tmp_path / "file", compressed=False) as stream:
        lines, blocks = csv_file._Lines(stream), []
        while block := lines.read(size + 3):
            blocks.append(block)
    for block in blocks:
        block.decode("utf-8")
    wanted = (b"x" + data).decode("utf-8", csv_file._BAD_BYTE)
    assert b"".join(blocks).decode("utf-8").removesuffix(f"\n{csv_file._END}\n") == wanted


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(raw, "BLOCK_BYTES", 2000)


MIXED = [row(n, prompt=f'["q{n}"]' if n % 9 else "plain", response_a='["a"]', response_b="[1]") for n in range(1, 400)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_threads_change_nothing(kind: str, tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(as_csv(MIXED) if kind == "csv" else as_jsonl(MIXED))
    several = load_labelled(path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = load_labelled(path)
    assert several.rows.equals(alone.rows)
    assert several.rows["id"].num_chunks > 3
    assert str(several.summary) == str(alone.summary)


@pytest.mark.parametrize("later", ['["broken', None])
def test_first_of_several_faults_is_the_one_reported(later: str | None, tmp_path: Path, threads: None) -> None:
    rows = [dict(one) for one in MIXED]
    rows[200]["response_a"] = '["broken'
    if later:
        rows[300]["prompt"] = later
    data = as_csv(rows) + (b"" if later else b"one,cell,too,few\n")
    (tmp_path / "rows.csv").write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_labelled(tmp_path / "rows.csv")
    assert (caught.value.row, caught.value.column) == (201, "response_a")


def test_fault_of_reading_comes_after_the_parts_before_it(threads: None) -> None:
    def parts() -> Iterator[int]:
        yield from range(3)
        raise OSError("unreadable")

    def work(part: int) -> int:
        if part == 2:
            raise ValueError("part 2")
        return part

    done = []
    with pytest.raises(ValueError, match="part 2"):
        for result in in_order.in_order(work, parts()):
            done.append(result)
    assert done == [0, 1]
    with pytest.raises(OSError, match="unreadable"):
        list(in_order.in_order(lambda part: part, parts()))


def test_part_that_is_worked_on_alone_is_done_before_the_next_is_read(threads: None) -> None:
    done: list[int] = []

    def parts() -> Iterator[int]:
        for part in range(20):
            assert part % 5 != 1 or part - 1 in done
            yield part

    assert list(in_order.in_order(lambda p: done.append(p) or p, parts(), lambda p: p % 5 == 0)) == list(range(20))


@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("2", 2), ("3,2", 3), ("64", in_order.MAX_THREADS)])
def test_number_of_threads_is_that_of_the_environment(
    given: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert in_order.thread_count() == threads


def test_rows_are_kept_as_a_filter_keeps_them(tmp_path: Path, threads: None) -> None:
    (tmp_path / "rows.csv").write_bytes(as_csv(MIXED))
    rows = load_labelled(tmp_path / "rows.csv").rows
    keep = np.random.default_rng(0).random(len(rows)) < 0.8
    for mask in (keep, ~keep, np.zeros_like(keep), np.ones_like(keep)):
        assert keep_rows(rows, mask).equals(rows.filter(pa.array(mask)))
    assert not len(keep_rows(rows.slice(0, 0), keep[:0]))
