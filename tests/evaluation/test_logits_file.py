from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arena_distill.data.prompts import View
from arena_distill.evaluation.calibration import view_probabilities
from arena_distill.evaluation.logits_file import COLUMNS, read_view_logits
from arena_distill.evaluation.submission import write_submission
from arena_distill.runtime.artifacts import write_manifest
from arena_distill.runtime.errors import InputError

IDS = ["10", "9", "a,b", "2"]
VIEWS = [View(64), View(64, True), View(128)]
TEMPERATURE = 0.7


class Submitted:
    """What step 8 leaves: logits, the submission that was made of them, its manifest."""

    def __init__(self, folder: Path) -> None:
        self.logits = np.random.default_rng(0).normal(size=(len(VIEWS), len(IDS), 3)).astype(np.float32)
        self.csv = folder / "final_submission.csv"
        self.path = folder / "final_submission.logits.parquet"
        self.table = pa.table(
            {
                "id": IDS * len(VIEWS),
                "max_length": pa.array(np.repeat([view.max_length for view in VIEWS], len(IDS)), pa.int32()),
                "swapped": np.repeat([view.swap for view in VIEWS], len(IDS)),
                **{name: self.logits[:, :, k].ravel() for k, name in enumerate(COLUMNS[3:])},
            }
        )
        self.write(self.table)
        write_submission(self.csv, IDS, view_probabilities(self.logits, TEMPERATURE))
        self.manifest(temperature=TEMPERATURE)

    def write(self, table: pa.Table) -> None:
        pq.write_table(table, self.path)

    def manifest(self, **details: Any) -> None:
        path = self.csv.with_suffix(".manifest.json")
        write_manifest(self.csv, path=path, stage="s", settings={}, inputs={}, started=0.0, details=details)

    def replace(self, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
        index, field = self.table.column_names.index(column), self.table.schema.field(column)
        values = pa.array(change(self.table[column].to_pylist()), field.type)
        self.write(self.table.set_column(index, field, values))

    def refused(self, problem: str) -> None:
        with pytest.raises(InputError, match=problem):
            read_view_logits(self.path, IDS)


@pytest.fixture
def submitted(tmp_path: Path) -> Submitted:
    return Submitted(tmp_path)


def test_views_come_in_the_order_of_the_file_and_rows_in_that_of_the_ids(submitted: Submitted) -> None:
    found = read_view_logits(submitted.path, IDS)
    assert found.views == tuple(VIEWS) and found.temperature == TEMPERATURE
    np.testing.assert_array_equal(found.logits, submitted.logits)
    np.testing.assert_array_equal(read_view_logits(submitted.path, IDS[::-1]).logits, submitted.logits[:, ::-1])


def test_what_step_8_writes_is_read_back_bit_for_bit(submitted: Submitted) -> None:
    from arena_distill.inference.predict import logits_table

    submitted.write(logits_table(IDS, submitted.logits, VIEWS))
    found = read_view_logits(submitted.path, IDS)
    np.testing.assert_array_equal(found.logits, submitted.logits)
    assert found.views == tuple(VIEWS)


def test_lines_that_are_missing_doubled_or_of_other_rows_are_refused_by_id(submitted: Submitted) -> None:
    kept = np.arange(len(submitted.table))
    submitted.write(submitted.table.take(pa.array(kept[kept != 6])))
    submitted.refused(r"logits\.parquet, column 'id': the view of length 64, swapped, lacks 1 of 4 ids.*'a,b'")
    submitted.write(submitted.table.take(pa.array(np.append(kept, 9))))
    submitted.refused(r"row 13: the view of length 128 has the id '9' twice")
    submitted.replace("id", lambda ids: ["new" if k == 5 else name for k, name in enumerate(ids)])
    submitted.refused(r"row 6, column 'id': 1 lines are of no test row, the first has the id 'new'")
    submitted.write(submitted.table.slice(0, 0))
    submitted.refused("there are no rows")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_refused_by_row(submitted: Submitted, value: float) -> None:
    submitted.replace("logit_tie", lambda logits: [value if k == 7 else x for k, x in enumerate(logits)])
    submitted.refused(r"final_submission\.logits\.parquet, row 8: .* are not finite logits")


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_that_is_missing_or_has_gaps_is_named(submitted: Submitted, column: str) -> None:
    submitted.write(submitted.table.drop_columns([column]))
    submitted.refused(f"column '{column}': the column is missing")
    submitted.replace(column, lambda values: [None, *values[1:]])
    submitted.refused(f"column '{column}': holds an empty value")


def test_a_file_that_is_no_parquet_or_has_other_types_is_refused(submitted: Submitted) -> None:
    submitted.write(submitted.table.set_column(1, "max_length", pa.array(["long"] * len(submitted.table))))
    submitted.refused("cannot be read")
    submitted.path.write_text("no parquet")
    submitted.refused("cannot be read")


def test_logits_of_another_run_are_refused(submitted: Submitted) -> None:
    submitted.manifest(temperature=TEMPERATURE + 1e-3)
    submitted.refused(r"is not what .* gives at the temperature 0\.701.* one of them is of another run")
    submitted.manifest(temperature=TEMPERATURE)
    submitted.replace("logit_model_a", lambda logits: [x + 1e-4 * (k == 3) for k, x in enumerate(logits)])
    submitted.refused(r"id '2' is .* away")


@pytest.mark.parametrize("temperature", [None, 0, -1, "1", True, float("inf"), float("nan")])
def test_a_manifest_without_a_temperature_is_refused(submitted: Submitted, temperature: Any) -> None:
    submitted.manifest(temperature=temperature)
    submitted.refused(r"final_submission\.manifest\.json: must give the temperature")


def test_logits_without_their_submission_or_under_another_name_are_refused(submitted: Submitted) -> None:
    other = submitted.path.with_name("logits.parquet")
    other.write_bytes(submitted.path.read_bytes())
    with pytest.raises(InputError, match=r"is not named FILE\.logits\.parquet"):
        read_view_logits(other, IDS)
    submitted.csv.unlink()
    submitted.refused(r"final_submission\.csv: cannot be read")
