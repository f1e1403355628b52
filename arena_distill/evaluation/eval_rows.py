"""Rows that nothing was trained on, with their votes where those are at hand: what every conversion is proved on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from arena_distill.data.find_file import find_file
from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.run_settings import RunSettings

if TYPE_CHECKING:
    from arena_distill.data.records import Rows

NONE = "none"


class EvalRowsSettings(RunSettings):
    """Which rows to predict or to score on, and what is known of them."""

    test_csv: str = Field(
        "", description="rows that nothing was trained on; default data/[lmsys-chatbot-arena/]test.csv"
    )
    labels_csv: str = Field(
        "", description="votes on the test rows, or none; default: FILE_labels.csv beside the test file FILE.csv"
    )
    truth_parquet: str = Field(
        "", description="true probabilities of the test rows, or none; default: truth.parquet beside the test file"
    )

    @property
    def test_file(self) -> Path:
        """The rows.

        Raises:
            InputError: none is given, and none is in the default places.
        """
        return find_file(self.test_csv, "test", "--test-csv (or TEST_CSV)")

    @property
    def labels_file(self) -> Path | None:
        """Their votes, if there are any."""
        test = self.test_file
        return _given_or_beside(self.labels_csv, test.with_name(f"{test.stem}_labels{test.suffix}"), "LABELS_CSV")

    @property
    def truth_file(self) -> Path | None:
        """Their true probabilities, if they are known."""
        return _given_or_beside(self.truth_parquet, self.test_file.with_name("truth.parquet"), "TRUTH_PARQUET")


def _given_or_beside(given: str, beside: Path, setting: str) -> Path | None:
    if given == NONE:
        return None
    if given and not Path(given).is_file():
        raise InputError(f"{setting}={given}: no such file -> check the path, or say none")
    return Path(given) if given else beside if beside.is_file() else None


@dataclass(frozen=True)
class EvalRows:
    """N rows with what is known of them."""

    rows: Rows
    ids: list[str]
    votes: np.ndarray | None  # float64 [N, 3]
    truth: np.ndarray | None  # float64 [N, 3], the probabilities that the votes were drawn from
    test_file: Path
    labels_file: Path | None
    summary: str  # what loading counted and repaired

    @property
    def prompts(self) -> np.ndarray:
        """A key for each row, equal for equal prompts; uint64 ``[N]``."""
        return np.asarray(self.rows["prompt_hash"].to_numpy())


def eval_files(settings: EvalRowsSettings) -> dict[str, str]:
    """SHA-256 of each file that ``load_eval_rows`` would read, by the name of its setting.

    Raises:
        InputError: a file is missing.
    """
    files = {"test_csv": settings.test_file, "labels_csv": settings.labels_file, "truth_parquet": settings.truth_file}
    for name, file in files.items():
        if file is not None and not file.is_file():
            raise InputError(f"{name.upper()}={file}: no such file -> check the path")
    return {name: sha256_file(file) for name, file in files.items() if file is not None}


def load_eval_rows(settings: EvalRowsSettings) -> EvalRows:
    """Read the rows, their votes and their truth.

    Raises:
        DataError: a file cannot be used, or votes and truth are not of these rows; names file, row and column.
        InputError: a file is missing.
    """
    from arena_distill.data.loading import load_labels, load_test
    from arena_distill.evaluation.scoreboard import read_truth

    test = load_test(settings.test_file)
    ids = test.rows["id"].to_pylist()
    labels, truth = settings.labels_file, settings.truth_file
    return EvalRows(
        rows=test.rows,
        ids=ids,
        votes=load_labels(labels, ids) if labels else None,
        truth=read_truth(truth, ids) if truth else None,
        test_file=settings.test_file,
        labels_file=labels,
        summary=str(test.summary),
    )
