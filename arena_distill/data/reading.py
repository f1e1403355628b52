"""Recognise a data file by its name and first bytes, and open it with the reader of its kind."""

from __future__ import annotations

import stat
from pathlib import Path

from arena_distill.data.csv_file import CsvFile
from arena_distill.data.json_lines_file import JsonLinesFile
from arena_distill.data.parquet_file import ParquetFile
from arena_distill.data.raw import BYTE_ORDER_MARK, RawFile
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import DataError

_KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "this is a Git LFS pointer, not the data",
        "fetch the file itself with `git lfs pull`",
    ),
    (b"\xff\xfe", "the file is UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "the file is UTF-16 text", "save it as UTF-8"),
    (b"PK\x03\x04", "this is a zip archive (or a spreadsheet)", "unpack it, or export the sheet as CSV"),
)
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")
_MAGIC = {"parquet": b"PAR1", "gzip": b"\x1f\x8b"}


def open_raw(path: Path, summary: LoadSummary) -> RawFile:
    """Recognise ``path`` and read its column names.

    Raises:
        DataError: it does not exist, is a directory, empty, of an unknown kind, or not what its name says.
    """
    _require_file(path)
    kind, compressed = _kind_of(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=path, hint="check its permissions") from error
    if not start:
        raise DataError("the file is empty (0 bytes)", file=path, hint="download or write it again")
    _refuse_wrong_content(path, start, "gzip" if compressed else kind)
    if kind == "csv":
        return CsvFile(path, compressed, summary)
    if kind == "parquet":
        return ParquetFile(path, summary)
    return JsonLinesFile(path, compressed, summary)


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DataError("no such file", file=path, hint="check the path") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", file=path, hint="check the path and its permissions") from error
    if stat.S_ISDIR(mode):
        raise DataError("this is a directory", file=path, hint="name the .csv, .parquet or .jsonl file inside it")
    if not stat.S_ISREG(mode):
        raise DataError("this is a pipe or device, and must be read twice", file=path, hint="save it to a file first")


def _kind_of(path: Path) -> tuple[str, bool]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = suffixes[-1:] == [".gz"]
    suffix = (suffixes[-2:-1] if compressed else suffixes[-1:]) or [""]
    kind = _KINDS.get(suffix[0])
    if kind is None or (compressed and kind == "parquet"):
        known = ".csv, .tsv, .parquet, .jsonl (the text kinds also with .gz)"
        raise DataError(f"unknown kind of file {path.name!r}", file=path, hint=f"use one of {known}")
    return kind, compressed


def _refuse_wrong_content(path: Path, start: bytes, expected: str) -> None:
    for signature, problem, hint in _SIGNATURES:
        if start.startswith(signature):
            raise DataError(problem, file=path, hint=hint)
    if start.removeprefix(BYTE_ORDER_MARK).lstrip().lower().startswith(_WEB_PAGE):
        problem = "this is a web page (HTML or XML), not data: a download probably ended at an error or login page"
        raise DataError(problem, file=path, hint="download the file again")
    for kind, magic in _MAGIC.items():
        if kind == expected and not start.startswith(magic):
            raise DataError(f"this is not a {kind} file", file=path, hint="write it again, or mend its name")
        if kind != expected and start.startswith(magic):
            raise DataError(f"this is a {kind} file", file=path, hint="give it the extension of its content")


def data_sha256(path: Path) -> str:
    """Hash of a data file's bytes.

    Raises:
        DataError: it is missing, empty or of no kind that can be read.
    """
    open_raw(path, LoadSummary(str(path)))
    return sha256_file(path)
