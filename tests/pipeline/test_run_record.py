"""What a run remembers: lines that a kill or a full disk cut off are passed over, others that are damaged are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from arena_distill.pipeline.run_record import RunRecord, SubmittedJob
from arena_distill.runtime.errors import InputError

JOB = SubmittedJob("2026-01-01T00:00:00+0000", "step2_make_folds", "7", None, None, [], ["sbatch"], "logs/%x_%j.out")


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    record = RunRecord(tmp_path)
    record.add(JOB)
    return record


@pytest.mark.parametrize("torn", [b'{"submitted": "20', b"\xff\xfe", b'{"stage"'])
def test_a_line_that_was_cut_off_hides_no_other(record: RunRecord, torn: bytes) -> None:
    path = record.directory / "jobs.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    assert record.jobs() == [JOB]
    record.add(JOB)
    assert record.jobs() == [JOB, JOB]


@pytest.mark.parametrize("strange", ["{}", "[]", '{"job_id": "8"}', "7"])
def test_a_whole_line_that_says_something_else_is_named(record: RunRecord, strange: str) -> None:
    with (record.directory / "jobs.jsonl").open("a", encoding="utf-8") as file:
        file.write(strange + "\n")
    with pytest.raises(InputError, match=r"jobs\.jsonl, line 2: .* -> remove this line"):
        record.jobs()


def test_a_damaged_record_of_settings_says_how_to_go_on(record: RunRecord) -> None:
    (record.directory / "run.json").write_text('{"run": "x", "beg', "utf-8")
    with pytest.raises(InputError, match=r"run\.json: not a whole record .* -> remove this file, then start"):
        record.settings()
