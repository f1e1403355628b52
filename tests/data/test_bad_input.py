"""Every kind of odd or bad input, one line of a table each: refused and located, or repaired and counted."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arena_distill.data import cells, loading
from arena_distill.data.csv_file import BLANK_LINE
from arena_distill.data.labels import RENORMALISED
from arena_distill.data.loading import load_labelled, load_labels, load_test, load_texts
from arena_distill.data.records import SCHEMA
from arena_distill.runtime.errors import EXIT_BAD_INPUT, DataError
from tests.data.preference_files import HEADER, as_csv, as_jsonl, as_parquet, columns, lines, row, zipped

GOOD = "r0,question,yes,no,model_a"
PROBS = "id,prompt,response_a,response_b,winner_model_a_prob,winner_model_b_prob,winner_tie_prob"
ONE_HOT = "id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie"
TEXTS = "r0,question,yes,no,"
TEST = "id,prompt,response_a,response_b"
LABELS = "id,winner"
PROB_TRIO = "winner_model_a_prob … winner_tie_prob"
ONE_HOT_TRIO = "winner_model_a … winner_tie"


def labels_of_r1_r2(path: Path) -> np.ndarray:
    return load_labels(path, ["r1", "r2"])


@dataclass(frozen=True)
class Bad:
    """A file that must be refused."""

    name: str
    file: str
    content: bytes | None  # None: ``prepare`` makes the file, or there is none
    says: str
    row: int | None = None
    column: str | None = None
    load: Callable[[Path], Any] = load_labelled
    prepare: Callable[[Path], Any] | None = None


def in_test(*rows: str) -> bytes:
    return lines(*rows, header=TEST)


def in_probs(*votes: str) -> bytes:
    return lines(*(TEXTS + vote for vote in votes), header=PROBS)


def in_one_hot(*votes: str) -> bytes:
    return lines(*(TEXTS + vote for vote in votes), header=ONE_HOT)


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("train.csv", lines(GOOD))
    return out.getvalue()


GOOD_PARQUET = as_parquet(columns(50))
MULTI_LINE = 'r0,"one\ntwo\n\nthree",yes,"no\r\nnever",tie'

BAD = [
    # The file as a whole
    Bad("missing file", "train.csv", None, "no such file"),
    Bad("directory", "train.csv", None, "directory", prepare=Path.mkdir),
    Bad("pipe", "train.csv", None, "pipe", prepare=os.mkfifo),
    Bad("unknown extension", "train.xlsx", b"x", "unknown kind of file"),
    Bad("no extension", "train", lines(GOOD), "unknown kind of file"),
    Bad("0 bytes", "train.csv", b"", "empty"),
    Bad("0 bytes gzipped", "train.csv.gz", zipped(b""), "blank lines"),
    Bad("0 bytes, JSON lines", "train.jsonl", b"", "empty"),
    Bad("only blank lines", "train.csv", b"\n \r\n\n", "blank lines"),
    Bad("only blank lines, JSON lines", "train.jsonl", b"\n  \n\n", "blank lines"),
    Bad("header only", "train.csv", lines(), "no usable rows"),
    Bad("header without line break", "train.csv", HEADER.encode(), "no usable rows"),
    Bad("header only, test file", "test.csv", in_test(), "no rows", load=load_test),
    Bad("header only, texts", "texts.csv", lines(), "no rows", load=load_texts),
    Bad("header only, labels", "labels.csv", lines(header=LABELS), "no rows", load=labels_of_r1_r2),
    Bad("Parquet without rows", "train.parquet", as_parquet(columns(0)), "no usable"),
    Bad("zero usable rows", "train.csv", lines("r1,q,yes,no,", "r2,,,,tie"), "no usable rows"),
    Bad("Git LFS pointer", "train.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    Bad("Git LFS pointer for Parquet", "t.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    Bad("HTML page", "train.csv", b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    Bad("HTML page as JSON lines", "train.jsonl", b"<html>Sign in</html>", "web page"),
    Bad("zip archive", "train.csv", archive(), "zip"),
    Bad("Parquet bytes named .csv", "train.csv", GOOD_PARQUET, "parquet file"),
    Bad("CSV bytes named .parquet", "train.parquet", lines(GOOD), "not a parquet file"),
    Bad("gzip without .gz", "train.csv", zipped(lines(GOOD)), "gzip file"),
    Bad("plain text named .gz", "train.csv.gz", lines(GOOD), "not a gzip file"),
    Bad("truncated gzip", "train.csv.gz", zipped(lines(*[GOOD] * 500))[:-20], "damaged|cannot be read to its end"),
    Bad("truncated gzip, JSON lines", "t.jsonl.gz", zipped(as_jsonl([row()] * 500))[:-20], "cannot be read to its end"),
    Bad("truncated Parquet", "train.parquet", GOOD_PARQUET[:-100], "damaged Parquet"),
    Bad("Parquet magic only", "train.parquet", b"PAR1", "damaged Parquet"),
    Bad("UTF-16", "train.csv", lines(GOOD).decode().encode("utf-16"), "UTF-16"),
    Bad("JSON array as JSON lines", "train.jsonl", json.dumps([row()]).encode(), "not an object", row=1),
    Bad("indented JSON as JSON lines", "train.jsonl", json.dumps([row()], indent=1).encode(), "not a JSON object", 1),
    # Columns
    Bad("missing column", "train.csv", lines("r1,q,yes,tie", header="id,prompt,response_a,winner"), "'response_b'"),
    Bad("missing id in test", "test.csv", lines("q,a,b", header=TEST.removeprefix("id,")), "'id'", load=load_test),
    Bad("no label columns", "train.csv", in_test("r1,q,yes,no"), "no label columns"),
    Bad("two of three labels", "train.csv", lines(TEXTS + "1,0", header=PROBS.removesuffix(",winner_tie_prob")),
        "not winner_tie_prob"),
    Bad("column twice", "train.csv", lines(GOOD + ",x", header=HEADER + ",Prompt "), "'prompt' stands twice"),
    Bad("a title above the header", "train.csv", b"Export of votes\n" + lines(GOOD), "no column 'prompt'"),
    # Labels
    Bad("unknown winner", "train.csv", lines(GOOD, "r1,q,yes,no,model_c"), "'model_c'", 2, "winner"),
    Bad("winner is a number", "train.parquet", as_parquet(columns(winner=[1, 2])), "unknown winner", 1, "winner"),
    Bad("winner is a list", "train.parquet", as_parquet(columns(winner=[["tie"], []])), "single values", None,
        "winner"),
    Bad("probabilities sum to 0.8", "train.csv", in_probs("1,0,0", ".4,.2,.2"), "sum to 1 but to 0.8", 2, PROB_TRIO),
    Bad("negative probability", "train.csv", in_probs("1.2,-0.2,0"), "negative", 1, "winner_model_b_prob"),
    Bad("NaN probability", "train.csv", in_probs("0,1,0", "0.5,0.5,nan"), "not a finite", 2, "winner_tie_prob"),
    Bad("infinite probability", "train.csv", in_probs("inf,0,0"), "not a finite", 1, "winner_model_a_prob"),
    Bad("NaN probability, JSON lines", "train.jsonl",
        as_jsonl([row(**dict.fromkeys(PROBS.split(",")[4:], float("nan")))]), "finite", 1, "winner_model_a_prob"),
    Bad("percentages", "train.csv", in_probs("50,30,20"), "percentages", 1, PROB_TRIO),
    Bad("one probability missing", "train.csv", in_probs("0.5,,0.5"), "no value", 1, "winner_model_b_prob"),
    Bad("one-hot with two winners", "train.csv", in_one_hot("1,0,0", "1,1,0"), "2 winners", 2, ONE_HOT_TRIO),
    Bad("one-hot without winner", "train.csv", in_one_hot("0,0,0"), "0 winners", 1, ONE_HOT_TRIO),
    Bad("label is a word", "train.csv", in_one_hot("1,0,0", "0,yes,0"), "'yes' is not a number", 2, "winner_model_b"),
    Bad("label is a list", "train.parquet", as_parquet(columns(1, winner_model_a=[[1]], winner_model_b=[0],
        winner_tie=[0])), "not numbers", None, "winner_model_a"),
    Bad("winner and one-hot contradict", "train.csv", lines(GOOD + ",1,0,0", "r1,q,yes,no,tie,0,1,0",
        header=HEADER + ",winner_model_a,winner_model_b,winner_tie"), "different winners", 2, "winner"),
    # CSV records
    Bad("too few columns", "train.csv", lines(GOOD, "r1,q,yes"), "has 3 columns, the header 5", 2),
    Bad("too many columns", "train.csv", lines(GOOD, GOOD, "r1,q,with, comma,no,tie"), "has 6 columns", 3),
    Bad("ragged after cells of several lines", "train.csv", lines(MULTI_LINE, MULTI_LINE, "r1,q"), "2 columns", 3),
    Bad("ragged after blank lines", "train.csv", lines(GOOD, "", "  ", GOOD, "", "r1,q"), "2 columns", 3),
    Bad("ragged in a gzipped file", "train.csv.gz", zipped(lines(GOOD, "r1,q")), "2 columns", 2),
    Bad("ragged below a byte-order mark", "train.csv", b"\xef\xbb\xbf" + lines(GOOD, "r1,q"), "2 columns", 2),
    Bad("quote never closed in the last row", "train.csv", lines(GOOD, 'r1,q,yes,no,"tie'), "never closed", 2),
    Bad("quote never closed", "train.csv", lines(GOOD, 'r1,"q,yes,no,tie', GOOD, GOOD), "never closed", 2),
    Bad("Latin-1 bytes", "train.csv", lines(GOOD, "r1,q,né,no,tie").decode().encode("latin-1"), "UTF-8 .byte 0xe9",
        2, "response_a"),
    Bad("Latin-1 id", "train.csv", b"\n".join([HEADER.encode(), b"\xe9,q,yes,no,tie"]), "UTF-8", 1, "id"),
    Bad("Latin-1 in a ragged row", "train.csv", lines(GOOD, "é,q").decode().encode("latin-1"), "2 columns", 2),
    # Text cells
    Bad("broken JSON list", "train.csv", as_csv([row(1, prompt='["a"]'), row(2, prompt='["a", "b')]),
        "broken JSON list", 2, "prompt"),
    Bad("JSON list of objects", "train.csv", as_csv([row(1, prompt='["a"]', response_a='["b"]'),
        row(2, prompt='["a"]', response_a='["b", {"role": "user"}]')]), "an object", 2, "response_a"),
    Bad("nested JSON lists", "train.csv", as_csv([row(prompt='["a", ["b"]]')]), "a list", 1, "prompt"),
    Bad("JSON list nested deeply", "train.csv", as_csv([row(prompt='["a"]'), row(prompt="[" * 10**5 + "]" * 10**5)]),
        "broken JSON list", 2, "prompt"),
    Bad("cell that would inject a row", "train.csv", as_csv([row(prompt='["x"]'),
        row(prompt='["a"]}{"turns":["b"]')]), "broken JSON list", 2, "prompt"),
    Bad("cell that would inject a key", "train.csv", as_csv([row(prompt='["a"],"turns":["b"]')]), "broken", 1,
        "prompt"),
    Bad("cell that would inject a null row", "train.csv", as_csv([row(prompt='["x"]'),
        row(prompt='["a"]} null {"turns":["b"]')]), "broken JSON list", 2, "prompt"),
    Bad("struct column", "train.parquet", as_parquet(columns(prompt=[{"text": "a"}, {"text": "b"}])), "struct", None,
        "prompt"),
    Bad("column of lists of structs", "train.parquet", as_parquet(columns(1, prompt=[[{"text": "a"}]])), "struct", None,
        "prompt"),
    Bad("column of dates", "train.parquet", as_parquet(columns(1, prompt=pa.array([0], pa.date32()))), "date", None,
        "prompt"),
    Bad("Latin-1 bytes in Parquet", "t.parquet", as_parquet(columns(response_b=pa.array([b"ok", b"\xe9"]))), "0xe9", 2,
        "response_b"),
    Bad("Latin-1 bytes in a list in Parquet", "t.parquet",
        as_parquet(columns(3, response_b=pa.array([[], [b"ok", b"ok"], [b"\xe9"]]))), "0xe9", 3, "response_b"),
    # JSON lines
    Bad("broken JSON line", "train.jsonl", as_jsonl([row(1), row(2)]) + b'\n{"id": "r3", "pro\n', "not a JSON object",
        3),
    Bad("JSON line that is a list", "train.jsonl", as_jsonl([row(1), ["a"]]), "a JSON list, not an object", 2),
    Bad("JSON line that is null", "train.jsonl", as_jsonl([row(1), row(2), None]), "a JSON single value", 3),
    Bad("null after an object on a line", "train.jsonl", as_jsonl([row(1)]) + b'{"id": "x"} null\n',
        "not a JSON object", 2),
    Bad("JSON line nested deeply", "train.jsonl", as_jsonl([row()]) + b'{"id":' + b"[" * 10**5 + b"]" * 10**5 + b"}\n",
        "not a JSON object", 2),
    Bad("Latin-1 in JSON lines", "train.jsonl", as_jsonl([row(1)]) + b'{"prompt": "\xe9"}\n', "0xe9", 2),
    Bad("object as a text", "train.jsonl", as_jsonl([row(1), row(2, response_a={"text": "x"})]), "an object", 2,
        "response_a"),
    Bad("list of objects as a text", "train.jsonl", as_jsonl([row(1, prompt=["a"]), row(2, prompt=["a", {"b": 1}])]),
        "an object", 2, "prompt"),
    Bad("id is a list", "train.jsonl", as_jsonl([row(1), row(2, id=["r2"])]), "a list", 2, "id"),
    # Ids
    Bad("id cell empty in test", "test.csv", in_test("r1,q,yes,no", " ,q,yes,no"), "no id", 2, "id", load_test),
    Bad("id twice in test", "test.csv", in_test("r1,q,a,b", "r2,q,a,b", "r1,q,a,b"), "already in row 1", 3, "id",
        load_test),
    Bad("id twice in labels", "labels.csv", lines("r1,tie", "r2,tie", "r1,tie", header=LABELS), "already in row 1", 3,
        "id", labels_of_r1_r2),
    Bad("labels lack an id", "labels.csv", lines("r1,tie", header=LABELS), "'r2' .1 missing", load=labels_of_r1_r2),
    Bad("labels have an empty label", "labels.csv", lines("r2,tie", "r1,", header=LABELS), "without a label", 2,
        load=labels_of_r1_r2),
    Bad("labels file without labels", "labels.csv", in_test("r1,q,a,b"), "no label columns", load=labels_of_r1_r2),
    Bad("labels file without ids", "labels.csv", lines("tie", header="winner,x"), "'id'", load=labels_of_r1_r2),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_bad_input_is_refused_with_file_row_column_and_what_to_do(case: Bad, tmp_path: Path) -> None:
    path = tmp_path / case.file
    if case.content is not None:
        path.write_bytes(case.content)
    if case.prepare is not None:
        case.prepare(path)
    with pytest.raises(DataError, match=case.says) as caught:
        case.load(path)
    error = caught.value
    assert (error.file, error.row, error.column) == (str(path), case.row, case.column)
    assert error.hint
    assert error.exit_code == EXIT_BAD_INPUT
    assert len(str(error)) < 700 + len(str(path)), "a message is a line, not a dump of the file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(lines(GOOD))
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        load_labelled(path)


@dataclass(frozen=True)
class Odd:
    """A file that loads, its oddities repaired or dropped and counted."""

    name: str
    file: str
    content: bytes
    cells: dict[str, list[Any]] = field(default_factory=dict)  # column -> its values
    repairs: dict[str, int] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    load: Callable[[Path], loading.Loaded] = load_labelled


def lists(*values: Any, **others: Any) -> bytes:
    """A CSV file in list layout whose first answers are ``values``, raw."""
    return as_csv([row(n, prompt='["q"]', response_a=value, response_b='["no"]', **others)
                   for n, value in enumerate(values, start=1)])  # fmt: skip


LONE_HIGH, LONE_LOW = "\\ud83d", "\\ude00"
LONG = "word " * 5_000_000  # 25 MB

ODD = [
    # Files
    Odd("byte-order mark", "train.csv", b"\xef\xbb\xbf" + lines(GOOD), {"id": ["r0"]}, notes=("byte-order mark",)),
    Odd("byte-order mark, JSON lines", "train.jsonl", b"\xef\xbb\xbf" + as_jsonl([row()]), {"id": ["r1"]},
        notes=("byte-order mark",)),
    Odd("CRLF", "train.csv", lines(GOOD, GOOD.replace("r0", "r1"), end="\r\n"), {"label": [0, 0], "id": ["r0", "r1"]}),
    Odd("CRLF, JSON lines", "train.jsonl", as_jsonl([row(), row(2)]).replace(b"\n", b"\r\n"), {"id": ["r1", "r2"]}),
    Odd("CR only", "train.csv", lines(GOOD, end="\r"), {"id": ["r0"], "response_b": [["no"]]}),
    Odd("no line break at the end", "train.csv", lines(GOOD).rstrip(), {"label": [0]}),
    Odd("blank lines above the header", "train.csv", b"\n\r\n" + lines(GOOD), {"id": ["r0"]}),
    Odd("blank lines between rows", "train.csv", lines(GOOD, "", " ", ",,", "r1,q,yes,no,tie"), {"label": [0, 2]},
        {BLANK_LINE: 2}),
    Odd("blank lines, JSON lines", "train.jsonl", b"\n" + as_jsonl([row()]) + b"\n  \n" + as_jsonl([row(2)]),
        {"id": ["r1", "r2"]}),
    Odd("header in capitals and white space", "train.csv",
        lines(GOOD, header=" ID,Prompt , RESPONSE_A,response_b,Winner"), {"id": ["r0"], "label": [0]},
        notes=("' ID' read as 'id'", "'Winner' read as 'winner'")),
    Odd("quoted header", "train.csv", lines(GOOD, header='"id","prompt" ,"response_a","response_b","winner"'),
        {"id": ["r0"], "prompt": [["question"]]}),
    Odd("semicolons", "train.csv", lines("r1;a, b;yes;no;tie", header=HEADER.replace(",", ";")),
        {"prompt": [["a, b"]]}, notes=("separated by ';'",)),
    Odd("tabs", "train.tsv", lines("r1\ta, b\tyes\tno\ttie", header=HEADER.replace(",", "\t")),
        {"prompt": [["a, b"]]}, notes=("separated by '\\t'",)),
    Odd("nameless columns", "train.csv", lines("0," + GOOD + ",", header="," + HEADER + ","), {"id": ["r0"]}),
    Odd("quotes in quotes and a lone quote", "train.csv", lines('r1,"say ""hi""",5" pipe,"a\nb",tie'),
        {"prompt": [['say "hi"']], "response_a": [['5" pipe']], "response_b": [["a\nb"]]}),
    Odd("no id column", "train.csv", lines("q,yes,no,tie", "p,yes,no,tie", header=HEADER.removeprefix("id,")),
        {"id": ["1", "2"]}, notes=("no id column",)),
    Odd("very long cell", "train.csv", as_csv([row(1), row(2, response_a=LONG), row(3)]),
        {"response_a": [["yes"], [LONG], ["yes"]]}),
    Odd("very long cell, JSON lines", "train.jsonl", as_jsonl([row(1), row(2, response_a=[LONG]), row(3)]),
        {"response_a": [["yes"], [LONG], ["yes"]]}),
    # Labels
    Odd("winner in other spellings", "train.csv", lines("r1,q,a,b,Model_B ", "r2,q,a,b,tie (bothbad)", "r3,q,a,b, TIE"),
        {"label": [1, 2, 2], "target": [None] * 3}),
    Odd("sums of roughly 1", "train.csv", in_probs(".333,.333,.333", "0.2,0.8,0"),
        {"target": [[1 / 3, 1 / 3, 1 / 3], [0.2, 0.8, 0.0]], "label": [2, 1]},
        {RENORMALISED: 1, loading.DUPLICATE_ID: 1}),
    Odd("one-hot as booleans", "train.csv", in_one_hot("False,True,False"), {"label": [1], "target": [None]}),
    Odd("empty labels", "train.csv", lines(GOOD, "r1,q,yes,no,", "r2,q,yes,no,tie"), {"id": ["r0", "r2"],
        "base_idx": [0, 1]}, drops={loading.NO_LABEL: 1}),
    Odd("no text at all", "train.csv", lines(GOOD, "r1, ,,,tie"), {"id": ["r0"]}, drops={loading.NO_TEXT: 1}),
    Odd("test file with labels", "test.csv", lines(GOOD), {"label": [None], "base_idx": [None]},
        notes=("label columns not read: winner",), load=load_test),
    # Ids
    Odd("ids twice in train", "train.csv", lines(GOOD, GOOD, GOOD), {"id": ["r0"] * 3}, {loading.DUPLICATE_ID: 2}),
    Odd("ids are numbers", "train.parquet", as_parquet(columns(id=[17, 18])), {"id": ["17", "18"]}),
    Odd("ids look like dates", "train.jsonl", as_jsonl([row(id="2024-01-31")]), {"id": ["2024-01-31"]}),
    Odd("ids are mixed", "train.jsonl", as_jsonl([row(id=7), row(id="r2"), row(id=1.50)]), {"id": ["7", "r2", "1.5"]}),
    # Texts in list layout
    Odd("null answers", "train.csv", lists("[null]", '["a", null]', "null", "", '["a"]'),
        {"response_a": [[None], ["a", None], [None], [None], ["a"]]},
        {loading.EMPTY_ANSWER: 3, loading.TURNS_DIFFER: 1}),
    Odd("empty answers", "train.csv", lists('[""]', "[]", '["  "]'), {"response_a": [[""], [None], ["  "]]},
        {loading.EMPTY_ANSWER: 3}),
    Odd("numbers and booleans in lists", "train.csv", lists("[1.50]", "[true, null]", '["a", 12345678901234567890]'),
        {"response_a": [["1.50"], ["true", None], ["a", "12345678901234567890"]]},
        {cells.NOT_TEXT: 3, loading.TURNS_DIFFER: 2}),
    Odd("NaN in lists", "train.csv", lists("[NaN]", '["a"]'), {"response_a": [[None], ["a"]]},
        {cells.NAN: 1, loading.EMPTY_ANSWER: 1}),
    Odd("Python lists", "train.csv", lists("['it', None]", """["it's"]""", r"['a\d']"),
        {"response_a": [["it", None], ["it's"], [r"a\d"]]}, {cells.PYTHON_LIST: 2, loading.TURNS_DIFFER: 1}),
    Odd("raw line break in a JSON string", "train.csv", lists('["a\nb"]', '["a\tb"]', '["c"]'),
        {"response_a": [["a\nb"], ["a\tb"], ["c"]]}, {cells.RAW_CONTROL: 2}),
    Odd("plain text among lists", "train.csv", lists("Sorry, no.", '["a"]', '["b"]'),
        {"response_a": [["Sorry, no."], ["a"], ["b"]]}, {cells.PLAIN_AMONG_LISTS: 1}),
    Odd("escaped lone surrogates", "train.csv", lists(f'["a{LONE_HIGH}"]', f'["{LONE_LOW}b"]', '["\\ud83d\\ude00"]'),
        {"response_a": [["a�"], ["�b"], ["😀"]]}, {cells.LONE_SURROGATE: 2}),
    Odd("escaped NUL", "train.csv", lists('["a\\u0000b"]'), {"response_a": [["ab"]]}, {cells.NUL_BYTE: 1}),
    Odd("white space around lists", "train.csv", lists(' ["a"] \n', '["b"]'), {"response_a": [["a"], ["b"]]}),
    # Texts in plain layout
    Odd("plain text that looks like a list", "train.csv", lines("r1,[INST] hi,yes,no,tie", 'r2,"[""a""]",yes,no,tie',
        "r3,hello,yes,no,tie"), {"prompt": [["[INST] hi"], ['["a"]'], ["hello"]]}),
    Odd("NUL byte", "train.csv", lines("r1,q,y\0es,no,tie"), {"response_a": [["yes"]]}, {cells.NUL_BYTE: 1}),
    Odd("identical answers", "train.csv", lines("r1,q,yes,yes,tie"), {"label": [2]}, {loading.IDENTICAL_ANSWERS: 1}),
    Odd("empty prompt", "train.csv", lines("r1,,yes,no,tie"), {"prompt": [[None]]}, {loading.EMPTY_PROMPT: 1}),
    # Parquet
    Odd("numbers as texts in Parquet", "t.parquet", as_parquet(columns(response_a=[1, None])),
        {"response_a": [["1"], [None]]}, {cells.NOT_TEXT: 1, loading.EMPTY_ANSWER: 1}),
    Odd("dictionary-encoded texts in Parquet", "t.parquet",
        as_parquet(columns(prompt=pa.array(["q", "q"]).dictionary_encode(), winner=pa.array(["tie", "model_b"])
        .dictionary_encode(), id=pa.array(["x", "y"]).dictionary_encode())), {"prompt": [["q"], ["q"]], "label": [2, 1],
        "id": ["x", "y"]}),
    Odd("lists with null lists in Parquet", "t.parquet",
        as_parquet(columns(3, prompt=[["a", "b"], None, []], response_a=[["c", None], ["d"], ["e"]])),
        {"prompt": [["a", "b"], [None], [None]], "response_a": [["c", None], ["d"], ["e"]]},
        {loading.EMPTY_PROMPT: 2, loading.TURNS_DIFFER: 1}),
    Odd("large strings and large lists in Parquet", "t.parquet",
        as_parquet(columns(prompt=pa.array(["p", "q"], pa.large_string()),
        response_a=pa.array([["a"], ["b"]], pa.large_list(pa.large_string())))), {"prompt": [["p"], ["q"]],
        "response_a": [["a"], ["b"]]}),
    Odd("lists of fixed size in Parquet", "t.parquet",
        as_parquet(columns(prompt=pa.array([["p", "q"], None], pa.list_(pa.string(), 2)))),
        {"prompt": [["p", "q"], [None]]}, {loading.EMPTY_PROMPT: 1, loading.TURNS_DIFFER: 1}),
    Odd("lists of numbers in Parquet", "t.parquet", as_parquet(columns(response_a=[[1, None], [2]])),
        {"response_a": [["1", None], ["2"]]}, {cells.NOT_TEXT: 2, loading.TURNS_DIFFER: 1}),
    Odd("texts as bytes in Parquet", "t.parquet", as_parquet(columns(response_a=[b"a", "é".encode()])),
        {"response_a": [["a"], ["é"]]}),
    Odd("column of nulls in Parquet", "t.parquet", as_parquet(columns(response_a=pa.nulls(2))),
        {"response_a": [[None], [None]]}, {loading.EMPTY_ANSWER: 2}),
    # JSON lines
    Odd("missing keys in some JSON lines", "t.jsonl",
        as_jsonl([{k: v for k, v in row(1).items() if k != "response_a"}, row(2), {"prompt": "q", "response_b": "no"}]),
        {"response_a": [[None], ["yes"]]}, {loading.EMPTY_ANSWER: 1}, {loading.NO_LABEL: 1}),
    Odd("label only in later JSON lines", "t.jsonl",
        as_jsonl([{"id": "x", "prompt": "q", "response_a": "a", "response_b": "b"}, row(2)]), {"id": ["r2"]},
        drops={loading.NO_LABEL: 1}),
    Odd("types that vary by JSON line", "t.jsonl",
        as_jsonl([row(1), row(2, response_a=["b", None]), row(3, response_a=3.0), row(4, response_a=True)]),
        {"response_a": [["yes"], ["b", None], ["3.0"], ["true"]]}, {cells.NOT_TEXT: 2, loading.TURNS_DIFFER: 1}),
    Odd("numbers in JSON lines", "t.jsonl", as_jsonl([row(1, response_a=12), row(2, response_a=0.10)]),
        {"response_a": [["12"], ["0.1"]]}, {cells.NOT_TEXT: 2}),
    Odd("lists of numbers in JSON lines", "t.jsonl", as_jsonl([row(1, response_a=[1, 2.50])]),
        {"response_a": [["1", "2.5"]]}, {cells.NOT_TEXT: 2, loading.TURNS_DIFFER: 1}),
    Odd("NaN as a text in JSON lines", "t.jsonl", as_jsonl([row(1, response_a=float("nan"))]), {"response_a": [[None]]},
        {cells.NAN: 1, loading.EMPTY_ANSWER: 1}),
    Odd("lone surrogates in JSON lines", "t.jsonl", as_jsonl([row(1, prompt="a\ud83d"), row(2, prompt=["\ude00b"])]),
        {"prompt": [["a�"], ["�b"]]}, {cells.LONE_SURROGATE: 2}),
    Odd("raw tab and NUL in JSON lines", "t.jsonl", as_jsonl([row(1, prompt="a b c")]).replace(b"a b c", b"a\tb\0c"),
        {"prompt": [["a\tbc"]]}, {cells.RAW_CONTROL: 1, cells.NUL_BYTE: 1}),
    Odd("escaped NUL in JSON lines", "t.jsonl", as_jsonl([row(1, prompt="a\0b")]), {"prompt": [["ab"]]},
        {cells.NUL_BYTE: 1}),
    Odd("texts that look like dates in JSON lines", "t.jsonl", as_jsonl([row(response_a="2024-01-31",
        response_b=["2024-01-31 10:00:00"])]), {"response_a": [["2024-01-31"]],
        "response_b": [["2024-01-31 10:00:00"]]}),
    Odd("a key twice in a JSON line", "t.jsonl", as_jsonl([row(1)]).replace(b'{"id"', b'{"id": "old", "id"'),
        {"id": ["r1"]}),
    Odd("other keys nested deeply in JSON lines", "t.jsonl",
        as_jsonl([row(1)]) * 2000 + as_jsonl([row(2)]).replace(b"}", b',"x":' + b"[" * 900 + b"]" * 900 + b"}"), {},
        {loading.DUPLICATE_ID: 1999}),
]  # fmt: skip


@pytest.mark.parametrize("case", ODD, ids=lambda case: case.name)
def test_odd_input_is_repaired_or_dropped_and_counted(case: Odd, tmp_path: Path) -> None:
    path = tmp_path / case.file
    path.write_bytes(case.content)
    loaded = case.load(path)
    for name, values in case.cells.items():
        assert loaded.rows[name].to_pylist() == values
    summary = loaded.summary
    assert (dict(summary.repairs), dict(summary.drops)) == (case.repairs, case.drops)
    for note in case.notes:
        assert any(note in text for text in summary.notes)
    assert bool(case.notes) or not [n for n in summary.notes if "read as" not in n]
    assert summary.rows_used == len(loaded.rows)
    assert summary.rows_read == summary.rows_used + sum(summary.drops.values())
    assert loaded.rows.schema.equals(SCHEMA)
    loaded.rows.validate(full=True)


def test_the_tables_name_each_kind_once() -> None:
    names = [case.name for case in (*BAD, *ODD)]
    assert len(names) == len(set(names)) >= 100
