"""Whatever the bytes of a file are, a loader loads them or raises a DataError; nothing else comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arena_distill.data.loading import load_labelled, load_labels, load_test, load_texts
from arena_distill.data.records import SCHEMA
from arena_distill.runtime.errors import DataError
from tests.data.preference_files import as_csv, as_jsonl, as_parquet, columns, row, zipped

IN_LISTS = [row(n, prompt=f'["q{n}", null]', response_a='["\\u00e9 é"]', response_b='["b"]') for n in range(1, 6)]
NATIVE = [row(n, prompt=[f"q{n}", None]) for n in range(1, 5)]
SEEDS = {
    "csv": as_csv(IN_LISTS),
    "jsonl": as_jsonl([*NATIVE, row(6, prompt=3)]),
    "parquet": as_parquet(
        columns(20, prompt=[["q", None]] * 20, winner=pa.array(["tie", "model_a"] * 10).dictionary_encode())
    ),
    "csv.gz": zipped(as_csv(IN_LISTS)),
    "jsonl.gz": zipped(as_jsonl(NATIVE)),
}
PIECES = [
    *(bytes([byte]) for byte in b'"\n\r,[]{}\\:;\t \0\x04\x1f\xff'),
    *(b'""', b"\\u0000", b"\\ud800", b"NaN", b"null", b"\nnull\n", b"} null", b"1e999", b"\xef\xbb\xbf"),
]
LOADERS: list[Callable[[Path], Any]] = [load_labelled, load_test, load_texts, lambda path: load_labels(path, ["r1"])]

edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.one_of(st.binary(max_size=3), st.sampled_from(PIECES))),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=edits)
def test_damaged_file_loads_or_is_a_data_error(
    kind: str, changes: list[tuple[float, int, bytes]], tmp_path: Path
) -> None:
    data = SEEDS[kind]
    for place, removed, added in changes:
        at = round(place * len(data))
        data = data[:at] + added + data[at + removed :]
    path = tmp_path / f"file.{kind}"
    path.write_bytes(data)
    for load in LOADERS:
        try:
            loaded = load(path)
        except DataError as error:
            assert error.file == str(path)
            assert error.hint
        else:
            if load in (load_labelled, load_test):
                loaded.rows.validate(full=True)
                assert loaded.rows.schema.equals(SCHEMA)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cell=st.text("[]{}\"',\\ :\nnulNoeTrue0\0\ud800\u00e9", max_size=25))
def test_any_text_in_a_cell_loads_or_is_a_data_error(cell: str, tmp_path: Path) -> None:
    encoded = cell.encode("utf-8", "replace").decode()
    files = {
        "csv": as_csv([row(1, prompt='["q"]'), row(2, prompt=encoded), row(3, prompt='["q"]')]),
        "jsonl": as_jsonl([row(1), row(2, prompt=cell), row(3, prompt=[cell])]),
    }
    for kind, data in files.items():
        path = tmp_path / f"file.{kind}"
        path.write_bytes(data)
        try:
            assert load_labelled(path).summary.rows_read == 3
        except DataError as error:
            assert kind == "csv", "JSON lines hold any text"
            assert (error.row, error.column) == (2, "prompt")
