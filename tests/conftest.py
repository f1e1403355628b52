"""Fixtures that several test modules share: a tiny backbone and a student trained on a few sample rows."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a hub
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test process has one core to itself: threads would only wait
OWN_THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores it for what it starts in the background,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and a script so started could not be interrupted

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE = REPOSITORY / "data" / "sample"

OWN_PREFIXES = (
    *("STUDENT_", "DISTILL_", "CV_", "TEACHER_", "ENCODER_", "POSTPRE_", "INFER_", "FOLDS_"),
    *("LLAMA_", "QWEN_", "GEMMA_", "SKIP_", "AVERAGE_", "QUANT_", "CALIB_", "PREDICT_", "TTA_", "HEAD_", "EVALUATION_"),
)
GENERAL_SETTINGS = {
    *("PROFILE", "MODE", "RUN", "SEED", "FORCE", "REPORT_TO", "RESUME_CHECKPOINT", "FOLD", "USE_WEIGHTED"),
    *("TRAIN_CSV", "TEST_CSV", "LABELS_CSV", "TRUTH_PARQUET", "OUTPUT_DIR", "EXTRA_DATA", "N_FOLDS", "FOLDS_JSON"),
    *("FOLDS", "BASE_MODEL", "LORA_DIR_PREFIX", "OUT_LORA", "OUT_MERGED", "MERGED_DTYPE"),
    *("MODEL_DIR", "OUT_DIR", "TOKENIZER_DIR", "OUT", "CLASSIFIER_FROM_DIR", "MAX_LENGTH", "BATCH_SIZE"),
    *("TEMPERATURE_JSON", "SUBMISSION", "LOGITS", "REPORT_OUT"),
    *("SCRATCH_BASE", "RUN_STAGE", "UT_DATA", "AUTO_DOWNGRADE", "WORLD_SIZE", "RANK"),
}


NO_SLURM = "NO SLURM WAS TESTED"


@pytest.fixture(autouse=True)
def _own_settings_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings that a developer has exported must not reach the tests, nor what one test exports the next."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(OWN_PREFIXES) or name in GENERAL_SETTINGS:
            monkeypatch.delenv(name)
    yield
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _own_core_only() -> None:
    """Work that takes all cores (a merge's check) must not leave later tests with sums unlike their subprocesses'."""
    if os.environ.get("PYTEST_XDIST_WORKER") and (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(OWN_THREADS)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly if no Slurm was tested: skips are easily overlooked among a thousand tests."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if reasons := [text.partition(NO_SLURM)[2].strip("') ") for text in skipped if NO_SLURM in text]:
        terminalreporter.section(f"{NO_SLURM}: {len(reasons)} tests were skipped", yellow=True, bold=True)
        terminalreporter.line(reasons[0].removeprefix(": "), yellow=True)


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """A command that a signal has stopped heeds no other, since its process ends; this one does not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def is_json(path: Path) -> bool:
    """Whether a file, which another process may be writing or removing, is whole."""
    try:
        json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def _head_of(file: Path, rows: int, into: Path) -> Path:
    import csv

    with file.open(newline="", encoding="utf-8") as source, into.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        for number, row in enumerate(csv.reader(source)):
            if number > rows:
                break
            writer.writerow(row)
    return into


@pytest.fixture(scope="session")
def small_train_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 160 sample votes."""
    return _head_of(SAMPLE / "train.csv", 160, tmp_path_factory.mktemp("data") / "train.csv")


@pytest.fixture(scope="session")
def small_test_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 40 sample pairs to predict; their votes are beside them in ``test_labels.csv``."""
    directory = tmp_path_factory.mktemp("data")
    _head_of(SAMPLE / "test_labels.csv", 40, directory / "test_labels.csv")
    return _head_of(SAMPLE / "test.csv", 40, directory / "test.csv")


@pytest.fixture(scope="session")
def sample_texts() -> list[str]:
    """All texts of the sample's training file."""
    from arena_distill.data.loading import load_texts
    from arena_distill.data.prompts import texts_of

    return [text for column in texts_of(load_texts(SAMPLE / "train.csv")) for text in column.to_pylist()]


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory, sample_texts: list[str]) -> Iterator[Path]:
    """A directory with one very small random checkpoint per family."""
    from arena_distill.models.quiet import quiet_libraries
    from arena_distill.models.tiny import TinySize, families, make_tiny_model

    quiet_libraries()
    directory = tmp_path_factory.mktemp("backbones")
    size = TinySize(hidden=32, layers=1, heads=2, vocabulary=1500, positions=512)
    for family in families():
        make_tiny_model(family, sample_texts, directory / family, size, seed=1)
    yield directory
