"""Small preference files for the tests of the data layer."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HEADER = "id,prompt,response_a,response_b,winner"


def lines(*rows: str, header: str = HEADER, end: str = "\n") -> bytes:
    """A CSV file from lines that are written as they are."""
    return "".join(row + end for row in (header, *rows)).encode("utf-8")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV, None as an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def as_jsonl(rows: Sequence[Any]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(columns: Mapping[str, Any]) -> bytes:
    """Columns (lists or Arrow arrays) as Parquet."""
    out = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), out)
    return out.getvalue()


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    """One good row with a hard vote for A."""
    good = {"id": f"r{number}", "prompt": f"question {number}", "response_a": "yes", "response_b": "no"}
    return {**good, "winner": "model_a", **changes}


def columns(count: int = 2, **changes: Any) -> dict[str, Any]:
    """The columns of ``count`` good rows."""
    rows = [row(number) for number in range(1, count + 1)]
    return {**{name: [r[name] for r in rows] for name in row()}, **changes}


def zipped(data: bytes) -> bytes:
    """gzip without a time stamp."""
    return gzip.compress(data, mtime=0)
