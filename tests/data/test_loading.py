"""The same rows give the same canonical table however they are stored and however their votes are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arena_distill.data import raw
from arena_distill.data.loading import load_labelled, load_labels, load_test, load_texts
from arena_distill.data.records import SCHEMA, joined_turns, targets
from arena_distill.runtime.errors import DataError
from tests.data.preference_files import as_csv, as_jsonl, as_parquet, row, zipped

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
TEXTS = ("prompt", "response_a", "response_b")
ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")


def sample_rows(name: str = "train") -> list[dict[str, Any]]:
    with (SAMPLE / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def native(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with real lists and numbers in place of their spelling."""
    return [{**r, **{name: json.loads(r[name]) for name in TEXTS}, **{n: int(r[n]) for n in ONE_HOT}} for r in rows]


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    return as_parquet({name: [r[name] for r in rows] for name in rows[0]})


STORES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], bytes]]] = {
    "CSV written again": ("x.csv", as_csv),
    "gzipped CSV": ("x.csv.gz", lambda rows: zipped(as_csv(rows))),
    "Parquet of JSON cells": ("x.parquet", parquet_of),
    "Parquet of lists": ("x.parquet", lambda rows: parquet_of(native(rows))),
    "JSON lines of JSON cells": ("x.jsonl", as_jsonl),
    "JSON lines of lists": ("x.jsonl", lambda rows: as_jsonl(native(rows))),
    "gzipped JSON lines": ("x.ndjson.gz", lambda rows: zipped(as_jsonl(native(rows)))),
}


@pytest.mark.parametrize("block", [4000, 16 << 20], ids=["many blocks", "one block"])
@pytest.mark.parametrize("store", STORES)
def test_equal_tables_from_every_kind_of_file(
    store: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_labelled(SAMPLE / "train.csv")
    name, write = STORES[store]
    path = tmp_path / name
    path.write_bytes(write(sample_rows()))
    monkeypatch.setattr(raw, "BLOCK_BYTES", block)
    loaded = load_labelled(path)
    for column in SCHEMA.names:
        if column != "source":
            assert loaded.rows[column].to_pylist() == expected.rows[column].to_pylist(), column
    assert loaded.summary.repairs == expected.summary.repairs
    assert loaded.summary.rows_used == 1500


def test_canonical_table_says_what_the_csv_module_and_json_read() -> None:
    rows = load_labelled(SAMPLE / "train.csv").rows
    assert rows.schema.equals(SCHEMA)
    raw_rows = sample_rows()
    for name in TEXTS:
        assert rows[name].to_pylist() == [json.loads(r[name]) for r in raw_rows]
    assert rows["id"].to_pylist() == [r["id"] for r in raw_rows]
    assert rows["label"].to_pylist() == [[r[name] for name in ONE_HOT].index("1") for r in raw_rows]
    assert rows["base_idx"].to_pylist() == list(range(1500))
    assert set(rows["source"].to_pylist()) == {"train.csv"}
    assert rows["target"].null_count == 1500


def test_row_numbers_in_errors_count_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "BLOCK_BYTES", 1000)
    rows = [row(n, response_a="line\nbreak, and a comma") for n in range(1, 401)]
    rows[320]["winner"] = "nobody"
    for name, data in {"x.csv": as_csv(rows), "x.jsonl": as_jsonl(rows), "x.parquet": parquet_of(rows)}.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            load_labelled(path)
        assert (caught.value.row, caught.value.column) == (321, "winner"), name
    ragged = as_csv(rows[:320]) + b"r321,short\n" + as_csv(rows[:5])
    (tmp_path / "ragged.csv").write_bytes(ragged)
    with pytest.raises(DataError, match="2 columns") as caught:
        load_labelled(tmp_path / "ragged.csv")
    assert caught.value.row == 321


def test_characters_cut_by_a_block_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(n, response_a="é€😀" * n) for n in range(1, 40)]
    for name, write in (("x.csv", as_csv), ("x.jsonl", lambda r: "".join(json.dumps(x, ensure_ascii=False) + "\n"
                        for x in r).encode())):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(write(rows))
        for block in range(2000, 2012):
            monkeypatch.setattr(raw, "BLOCK_BYTES", block)
            assert joined_turns(load_labelled(path).rows, "response_a") == [r["response_a"] for r in rows]


def test_base_idx_counts_usable_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(as_csv([row(1), row(2, winner=""), row(3)]))
    rows = load_labelled(path).rows
    assert rows["id"].to_pylist() == ["r1", "r3"]
    assert rows["base_idx"].to_pylist() == [0, 1]


PROBS = tuple(f"{name}_prob" for name in ONE_HOT)
STYLES = {
    "winner": ({"winner": "model_b"}, [0, 1, 0], 1, False),
    "winner, both bad": ({"winner": "tie (bothbad)"}, [0, 0, 1], 2, False),
    "one-hot": (dict(zip(ONE_HOT, (1, 0, 0), strict=True)), [1, 0, 0], 0, False),
    "soft in the one-hot columns": (dict(zip(ONE_HOT, (0.2, 0.5, 0.3), strict=True)), [0.2, 0.5, 0.3], 1, True),
    "probabilities": (dict(zip(PROBS, (0.25, 0.25, 0.5), strict=True)), [0.25, 0.25, 0.5], 2, True),
    "an even split is a tie": (dict(zip(PROBS, (0.5, 0.5, 0), strict=True)), [0.5, 0.5, 0], 2, True),
    "certain probabilities": (dict(zip(PROBS, (0, 0, 1), strict=True)), [0, 0, 1], 2, False),
    "winner and probabilities": ({"winner": "model_a", **dict(zip(PROBS, (0.4, 0.6, 0), strict=True))}, [0.4, 0.6, 0],
                                 1, True),
    "winner and empty probabilities": ({"winner": "tie", **dict.fromkeys(PROBS, "")}, [0, 0, 1], 2, False),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_every_label_style_gives_label_and_target(style: str, tmp_path: Path) -> None:
    votes, target, label, soft = STYLES[style]
    rows = [{"id": "r", **{name: name for name in TEXTS}, **votes}]
    path = tmp_path / "x.csv"
    path.write_bytes(as_csv(rows))
    loaded = load_labelled(path).rows
    assert loaded["label"].to_pylist() == [label]
    assert (loaded["target"].null_count == 0) == soft
    np.testing.assert_allclose(targets(loaded), [target])
    np.testing.assert_allclose(load_labels(path, ["r"]), [target])


def test_labels_come_in_the_order_of_the_ids_asked_for() -> None:
    ids = [r["id"] for r in sample_rows("test")]
    wanted = ids[::-3]
    votes = {r["id"]: [float(r[name]) for name in ONE_HOT] for r in sample_rows("test_labels")}
    np.testing.assert_array_equal(load_labels(SAMPLE / "test_labels.csv", wanted), [votes[i] for i in wanted])


def test_a_test_file_keeps_every_row_in_order_without_votes(tmp_path: Path) -> None:
    rows = [row(3), row(1, prompt="", response_a="", response_b=""), row(2)]
    path = tmp_path / "test.csv"
    path.write_bytes(as_csv(rows))
    loaded = load_test(path).rows
    assert loaded["id"].to_pylist() == ["r3", "r1", "r2"]
    assert loaded["label"].null_count == loaded["target"].null_count == loaded["base_idx"].null_count == 3


def test_texts_load_without_ids_or_labels(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(as_jsonl([{"prompt": "p", "response_a": "a", "response_b": "b"}]))
    assert load_texts(path)["prompt"].to_pylist() == [["p"]]


def test_targets_refuse_rows_without_votes() -> None:
    with pytest.raises(ValueError, match="neither"):
        targets(load_test(SAMPLE / "test.csv").rows)


def test_joined_turns_leave_out_null_turns() -> None:
    rows = pa.table({"x": pa.array([["a", None, "b"], [None], []], pa.list_(pa.string()))})
    for sliced, expected in ((rows, ["a\n\nb", "", ""]), (rows.slice(1), ["", ""])):
        assert joined_turns(sliced, "x") == expected
