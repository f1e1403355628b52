"""The data files of the chain: there, readable, with the right columns and rows; and the folds made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.data.cells import TextColumn
from arena_distill.data.find_file import find_file
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.data.folds import load_folds
from arena_distill.data.identity import rows_sha256
from arena_distill.data.labels import VoteReader, label_columns
from arena_distill.data.loading import load_labelled, load_labels, load_test, load_texts
from arena_distill.data.reading import open_raw
from arena_distill.data.records import TEXT_COLUMNS, Rows
from arena_distill.data.summary import LoadSummary
from arena_distill.inference.predict_settings import PredictSettings
from arena_distill.pipeline.preflight_chain import TINY, Chain, gigabytes
from arena_distill.pipeline.preflight_finding import Finding, Topic, guarded
from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import DataError, InputError
from arena_distill.runtime.run_settings import FoldedSettings
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
)
from arena_distill.training.post_pretrain_settings import PostPretrainSettings

DATA = Topic("data")

WHOLE_BYTES = 48 << 20
"""Files up to this size are read whole, in a second or two; of larger ones the first rows."""

_MIN_TEACHABLE = 16  # pairs that step 7 needs to calibrate and compare on, each


@dataclass(frozen=True)
class DataFile:
    """A file that was looked at."""

    path: Path
    setting: str
    rows: Rows | None  # None: too large to be read whole, or not usable
    sha256: str


def check_data(chain: Chain) -> Iterator[Finding]:
    """All files of the stages that will run."""
    train: list[DataFile] = []
    train_wanted = any(
        chain.runs(stage) for stage in (MAKE_FOLDS, TRAIN_TEACHERS, INFER_TEACHER_LOGITS, DISTILL_STUDENT)
    )
    if train_wanted:
        yield from guarded(DATA, "TRAIN_CSV", lambda: _train_file(chain, train))
        yield from guarded(DATA, "EXTRA_DATA", lambda: _extra_files(chain))
        yield from guarded(DATA, "folds", lambda: _folds(chain, train[0] if train else None))
    if chain.runs(POST_PRETRAIN):
        yield from guarded(DATA, "UT_DATA", lambda: _post_pretraining_files(chain))
    if any(chain.runs(stage) for stage in (LORA_ENSEMBLE, QUANTIZE, INFER_TTA)):
        yield from guarded(DATA, "TEST_CSV", lambda: _test_files(chain, train[0] if train else None))
    if chain.runs(QUANTIZE):
        yield from guarded(DATA, "CALIB_CSV", lambda: _calibration_file(chain, train_wanted))


def _train_file(chain: Chain, found: list[DataFile]) -> Iterator[Finding]:
    settings = chain.of(FoldSettings)
    if settings is None:
        return
    path = find_file(settings.train_csv, "train", "TRAIN_CSV")
    file, said = _labelled(path, "TRAIN_CSV")
    found.append(file)
    yield DATA.ok("TRAIN_CSV", said)


def _extra_files(chain: Chain) -> Iterator[Finding]:
    settings = chain.of(FoldSettings)
    for path in settings.extra_paths if settings else ():
        yield from guarded(DATA, "EXTRA_DATA", partial(_one_labelled, path, "EXTRA_DATA"))


def _post_pretraining_files(chain: Chain) -> Iterator[Finding]:
    settings = chain.of(PostPretrainSettings)
    if settings is None:
        return
    if not settings.data_paths:
        raise InputError("UT_DATA names no file -> give preference data such as UltraFeedback")
    for path in settings.data_paths:
        yield from guarded(DATA, "UT_DATA", partial(_one_labelled, path, "UT_DATA"))
    if chain.profile == TINY and (texts := chain.variables.get("TINY_TEXTS")):
        _, said = _texts(Path(texts))
        yield DATA.ok("TINY_TEXTS", said)
    try:
        find_file(settings.train_csv, "train", "TRAIN_CSV")
    except InputError:
        if not chain.runs(MAKE_FOLDS):  # else it is said already
            yield DATA.warning(
                "TRAIN_CSV", "is not there: step 1 cannot leave out its prompts, and step 3 will not take its models",
                "put the votes in place before step 1",
            )  # fmt: skip


def _one_labelled(path: Path, setting: str) -> Iterator[Finding]:
    yield DATA.ok(setting, _labelled(path, setting)[1])


def _test_files(chain: Chain, train: DataFile | None) -> Iterator[Finding]:
    settings = chain.of(PredictSettings)
    if settings is None:
        return
    try:
        path = settings.test_file
    except InputError as error:
        if chain.runs(INFER_TTA):
            raise
        yield DATA.warning(
            "TEST_CSV", f"{str(error).partition(' -> ')[0]}: conversions are proved on training rows only",
            "give TEST_CSV, and LABELS_CSV if there are votes",
        )  # fmt: skip
        return
    test, said = _test(path)
    yield DATA.ok("TEST_CSV", said)
    if train is not None:
        yield from _compared(test, train)
    yield from guarded(DATA, "LABELS_CSV", lambda: _votes(chain, settings, test))


def _compared(test: DataFile, train: DataFile) -> Iterator[Finding]:
    """Rows that training saw say nothing of how good a student is."""
    if test.sha256 == train.sha256:
        yield DATA.fix(
            "TEST_CSV", f"{test.path} is the training file {train.path}, byte for byte",
            "give rows that nothing was trained on; steps 6 and 7 refuse these",
        )  # fmt: skip
    elif test.rows is not None and train.rows is not None:
        known = np.isin(test.rows["row_hash"].to_numpy(), train.rows["row_hash"].to_numpy())
        prompts = np.isin(test.rows["prompt_hash"].to_numpy(), train.rows["prompt_hash"].to_numpy())
        if known.any():
            yield DATA.warning(
                "TEST_CSV", f"{int(known.sum()):,} of {len(known):,} rows stand in {train.path} too",
                "take them out of one of the two, or the score flatters",
            )  # fmt: skip
        elif prompts.any():
            yield DATA.ok("TEST_CSV", f"{int(prompts.sum()):,} of {len(prompts):,} rows share a prompt with TRAIN_CSV")


def _votes(chain: Chain, settings: PredictSettings, test: DataFile) -> Iterator[Finding]:
    labels, truth = settings.labels_file, settings.truth_file
    if labels is None:
        lost = "step 9 writes no evaluation" + (", and step 7 compares by KL divergence" * chain.runs(QUANTIZE))
        yield DATA.warning(
            "LABELS_CSV", f"no votes on the test rows: {lost}",
            f"put them in {test.path.with_name(f'{test.path.stem}_labels{test.path.suffix}')}, or do without",
        )  # fmt: skip
    elif test.rows is None:
        open_raw(labels, LoadSummary(str(labels)))
        yield DATA.ok("LABELS_CSV", f"{labels}, {gigabytes(labels.stat().st_size)}")
    else:
        votes = load_labels(labels, test.rows["id"].to_pylist())
        yield DATA.ok("LABELS_CSV", f"{labels}: a vote on each of the {len(votes):,} test rows")
    if truth is not None:
        yield DATA.ok("TRUTH_PARQUET", f"{truth} is there")


def _calibration_file(chain: Chain, train_checked: bool) -> Iterator[Finding]:
    """Texts for step 7; without any of their own the training votes, of which enough is said already."""
    settings = chain.of(QuantizeSettings)
    if settings is None or (train_checked and not settings.calib_csv):
        return
    path = settings.calibration_file
    rows, said = _texts(path)
    if rows is not None and len(rows) < 2 * _MIN_TEACHABLE:
        yield DATA.fix(
            "CALIB_CSV", f"{path}: {len(rows)} pairs are too few to calibrate and compare on",
            f"give a file with {2 * _MIN_TEACHABLE} or more",
        )  # fmt: skip
    else:
        yield DATA.ok("CALIB_CSV" if settings.calib_csv else "CALIB_CSV (TRAIN_CSV)", said)
    test = Path(settings.test_csv) if settings.test_csv else None
    if test is not None and test.is_file() and sha256_file(path) == sha256_file(test):
        yield DATA.fix("CALIB_CSV", f"{path} is the test file", "calibrate on training texts")


def _folds(chain: Chain, train: DataFile | None) -> Iterator[Finding]:
    """Folds that are there are of this data; else step 2 makes them."""
    settings = chain.of(FoldSettings)
    if settings is None:
        return
    path = settings.folds_path
    if not path.exists():
        if chain.runs(MAKE_FOLDS):
            yield DATA.ok("folds", f"step 2 makes {path}: {settings.n_folds} folds, seed {settings.seed}")
        else:
            yield DATA.fix("folds", f"{path} is not there, and step 2 is not to run", "--from 2, or correct FOLDS_JSON")
        return
    folds = load_folds(path)
    again = chain.runs(MAKE_FOLDS)
    if folds.n_folds != settings.n_folds or _other_seed(settings, folds.seed):
        said = f"{path} has {folds.n_folds} folds of seed {folds.seed}, and {settings.n_folds} of seed {settings.seed}"
        advice = "set N_FOLDS and SEED as the file has them, or name another FOLDS_JSON"
        if again:
            yield DATA.warning("folds", f"{said} are asked for: step 2 replaces it, and what was trained on it", advice)
        else:
            yield DATA.fix("folds", f"{said} are asked for", advice)
        return
    same = _same_data(path, folds.rows_sha256, train)
    if same is None:
        yield DATA.ok("folds", f"{path}: {folds.n_folds} folds of {len(folds.fold):,} rows, seed {folds.seed}")
    elif same:
        yield DATA.ok("folds", f"{path}: {folds.n_folds} folds of these {len(folds.fold):,} rows, seed {folds.seed}")
    elif again:
        yield DATA.warning(
            "folds", f"{path} was made of other data: step 2 replaces it, and what was trained on it fits no more",
            "choose another RUN to keep them, or the TRAIN_CSV that it was made of",
        )  # fmt: skip
    else:
        yield DATA.fix("folds", f"{path} was made of other data than {train.path if train else 'these'}",
                       "--from 2 makes them again, or give the TRAIN_CSV that it was made of")  # fmt: skip


def _other_seed(settings: FoldedSettings, seed: int) -> bool:
    return not settings.folds_json and seed != settings.seed


def _same_data(path: Path, rows_hash: str, train: DataFile | None) -> bool | None:
    """Whether folds are of this file: by its bytes, else by its rows; None where neither can be told quickly."""
    if train is None:
        return None
    recorded = (json.loads(path.read_text("utf-8")).get("data") or {}).get("sha256")
    if recorded == train.sha256:
        return True
    return None if train.rows is None else rows_sha256(train.rows) == rows_hash


def _labelled(path: Path, setting: str) -> tuple[DataFile, str]:
    if _is_large(path):
        rows = _first_rows(path, ("winner",))
        return DataFile(path, setting, None, sha256_file(path)), _large(path, rows)
    loaded = load_labelled(path)
    odd = "".join(f", {count:,} dropped ({reason})" for reason, count in loaded.summary.drops.items())
    return DataFile(path, setting, loaded.rows, sha256_file(path)), f"{path}: {len(loaded.rows):,} votes{odd}"


def _test(path: Path) -> tuple[DataFile, str]:
    if _is_large(path):
        rows = _first_rows(path, ("id",))
        return DataFile(path, "TEST_CSV", None, sha256_file(path)), _large(path, rows)
    loaded = load_test(path)
    return DataFile(path, "TEST_CSV", loaded.rows, sha256_file(path)), f"{path}: {len(loaded.rows):,} pairs"


def _texts(path: Path) -> tuple[Rows | None, str]:
    if _is_large(path):
        return None, _large(path, _first_rows(path, ()))
    rows = load_texts(path)
    return rows, f"{path}: {len(rows):,} pairs"


def _large(path: Path, rows: int) -> str:
    return f"{path}: {gigabytes(path.stat().st_size)}, the first {rows:,} rows are well"


def _is_large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > WHOLE_BYTES


def _first_rows(path: Path, needed: tuple[str, ...]) -> int:
    """Read the first block of a file as a stage would, and count its rows.

    Args:
        path: the file.
        needed: ``winner`` for votes in any style, ``id`` for ids.

    Raises:
        DataError: a column is missing, or a row cannot be used.
    """
    summary = LoadSummary(str(path))
    file = open_raw(path, summary)
    columns = (*(name for name in needed if name != "winner"), *TEXT_COLUMNS)
    if missing := [name for name in columns if name not in file.columns]:
        raise DataError(f"has no column {', '.join(missing)}", file=path, hint="rename or add it (README, Data)")
    labels = label_columns(file.columns, path) if "winner" in needed else []
    if "winner" in needed and not labels:
        raise DataError("has no label columns", file=path, hint="add winner, or winner_model_a … winner_tie")
    batches = file.batches([*columns, *labels], summary)
    try:
        batch = next(batches, None)
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    if batch is None:
        raise DataError("has a header but no rows", file=path, hint="add rows")
    for name in TEXT_COLUMNS:
        TextColumn(path, name, summary).turns(batch[name], 0)
    if labels:
        VoteReader(path, labels, summary).votes(batch, 0)
    return len(batch["prompt"])
