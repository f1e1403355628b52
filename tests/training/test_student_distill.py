"""A student of votes and teachers: where teachers are found, which row hears what, and which files are refused."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from arena_distill.data.folds import make_folds
from arena_distill.data.loading import load_labelled
from arena_distill.data.prompts import TextFormat
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import softmax
from arena_distill.models.classifier import load_tokenizer
from arena_distill.runtime.artifacts import sha256_file, write_manifest
from arena_distill.runtime.errors import EXIT_BAD_INPUT, EXIT_BAD_SETTINGS, InputError, run_command
from arena_distill.runtime.stages import INFER_TEACHER_LOGITS
from arena_distill.training.datasets import make_dataset
from arena_distill.training.soft_labels import read_label_files
from arena_distill.training.student_data import load_student_data
from arena_distill.training.trainer import LengthGroupedSampler
from tests.conftest import SAMPLE
from tests.training.distill_runs import teacher_logits
from tests.training.student_runs import REPOSITORY, arguments, quick_settings, run_mode, settings_for
from tests.training.teacher_runs import contents

WEIGHTS = "model.safetensors"
N_FOLDS = 3

Settings = dict[str, object]


@pytest.fixture(scope="module")
def rows(small_train_csv: Path) -> Rows:
    return load_labelled(small_train_csv).rows


@pytest.fixture
def quick(small_train_csv: Path, backbones: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of four steps of a very small student in the directory NAME."""

    def settings(name: str, **more: object) -> Settings:
        short = {"student_max_steps": 4, "student_max_length": 48, "student_early_stopping": 0}
        return quick_settings(small_train_csv, backbones / "bert", tmp_path / name) | short | more

    return settings


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def save_folds(directory: Path, rows: Rows, said: dict[str, np.ndarray], train_csv: Path | None = None) -> list[Path]:
    """What step 4 leaves of some teachers: NAME_fold_K/teacher_logits_fold_K.npy, silent outside fold K.

    With ``train_csv`` each comes with step 4's manifest.
    """
    fold_of_row, files = make_folds(rows, N_FOLDS, 42).fold, []
    for name, logits in said.items():
        for fold in range(N_FOLDS):
            own = np.where((fold_of_row == fold)[:, None], logits, np.float32(np.nan))
            file = save(directory / f"{name}_fold_{fold}" / f"teacher_logits_fold_{fold}.npy", own)
            files.append(file)
            if train_csv is not None:
                sign(file, train_csv)
    return files


def sign(file: Path, train_csv: Path) -> None:
    """Step 4's manifest, which says that ``file`` was made of ``train_csv``."""
    inputs = {"train_csv": sha256_file(train_csv)}
    write_manifest(file.parent, stage=INFER_TEACHER_LOGITS.name, settings={}, inputs=inputs, started=time.time())


def soft(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float32, where there are logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def directory_of(settings: Settings) -> Path:
    return Path(str(settings["student_output_model_dir"]))


def trained(mode: str, settings: Settings) -> bytes:
    """The weights that a training ends with."""
    run_mode(mode, **settings)
    return (directory_of(settings) / WEIGHTS).read_bytes()


def manifest_of(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / "manifest.json").read_text("utf-8"))
    return document


def main_py(monkeypatch: pytest.MonkeyPatch, mode: str, settings: Settings) -> int:
    """The exit code of ``python main.py --mode MODE …``, without a new interpreter."""
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments(mode, **settings)])
    return run_command(runpy.run_path(str(REPOSITORY / "main.py"))["main"])


# Which teachers, and whether they matter


def test_teachers_teach_and_with_no_weight_they_leave_the_student_to_the_last_byte(
    quick: Callable[..., Settings], rows: Rows, tmp_path: Path
) -> None:
    save_folds(tmp_path / "t", rows, teacher_logits(rows))
    teachers = {"distill_teachers": tmp_path / "t" / "*" / "*.npy"}
    votes = trained("student-train", quick("votes"))
    assert trained("student-distill-train", quick("none", **teachers, distill_alpha=0)) == votes
    different = {votes}
    lessons: list[Settings] = [
        {},
        {"distill_alpha": 1},
        {"distill_temp": 1},
        {"distill_temp_schedule": "linear:5,2"},
        {"distill_alpha": 0, "distill_mse_weight": 1},
        {"distill_alpha": 0, "distill_cosine_weight": 1},
    ]
    for number, weights in enumerate(lessons):
        different.add(trained("student-distill-train", quick(f"s{number}", **teachers, **weights)))
    assert len(different) == 1 + len(lessons), "a setting of the loss has no effect"


def test_a_glob_a_list_and_names_given_twice_mean_the_same_files(
    quick: Callable[..., Settings], rows: Rows, tmp_path: Path
) -> None:
    files = save_folds(tmp_path / "t", rows, teacher_logits(rows))
    spellings = (
        str(tmp_path / "t" / "*_fold_?" / "teacher_logits_fold_?.npy"),
        str(tmp_path / "**" / "teacher_logits_*.npy"),
        ", ".join(map(str, files)) + ",",
        ",".join(str(tmp_path / "t" / f"{name}_fold_*" / "*.npy") for name in teacher_logits(rows)),
        f"{files[0]},{tmp_path / 't' / 'x' / '..' / files[0].parent.name / files[0].name},{tmp_path / 't' / '*' / '*'}",
    )
    (tmp_path / "t" / "x").mkdir()
    found = set()
    for number, spelling in enumerate(spellings):
        settings = quick(f"s{number}", distill_teachers=spelling)
        found.add(trained("student-distill-train", settings))
        assert manifest_of(directory_of(settings))["teachers"] == ["llama", "qwen2"]
    assert len(found) == 1


def test_the_runs_own_teachers_are_taken_else_those_of_no_run(
    quick: Callable[..., Settings], rows: Rows, tmp_path: Path
) -> None:
    said = teacher_logits(rows)
    common = save_folds(tmp_path / "out" / "model_save" / "teacher_logits", rows, {"common": said["llama"]})
    own = save_folds(tmp_path / "out" / "model_save" / "mine" / "teacher_logits", rows, {"own": said["qwen2"]})
    for run, files in (("mine", own), ("other", common), ("", common)):
        settings = quick("unused", output_dir=tmp_path / "out", run=run, student_max_steps=1)
        del settings["student_output_model_dir"]
        run_mode("student-distill-train", **settings)
        manifest = manifest_of(tmp_path / "out" / "model_save" / run / "student_distilbert")
        heard = {digest for name, digest in manifest["inputs"].items() if name.startswith("teacher_")}
        assert heard == {sha256_file(file) for file in files}, run


def test_default_teachers_are_found_under_any_name_of_the_output_directory(
    quick: Callable[..., Settings], rows: Rows, tmp_path: Path
) -> None:
    output = tmp_path / "runs [2], old"
    save_folds(output / "model_save" / "teacher_logits", rows, teacher_logits(rows))
    settings = quick("s", output_dir=output, student_max_steps=1)
    run_mode("student-distill-train", **settings)
    assert manifest_of(directory_of(settings))["teachers"] == ["llama", "qwen2"]


def test_a_teacher_of_step_4_is_not_taken_on_trust_and_a_file_alone_is(
    quick: Callable[..., Settings],
    rows: Rows,
    small_train_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = teacher_logits(rows)
    save_folds(tmp_path / "step4", rows, {"llama": said["llama"]}, small_train_csv)
    alone = save(tmp_path / "alone.npy", said["qwen2"])
    step4 = tmp_path / "step4" / "*" / "*.npy"
    run_mode("student-distill-train", **quick("s", distill_teachers=f"{step4},{alone}", student_max_steps=1))
    out = capsys.readouterr().out
    trusted = [line for line in out.splitlines() if "taken on trust" in line]
    assert len(trusted) == 1 and str(alone) in trusted[0]


def test_a_teacher_that_foretells_the_opposite_of_the_votes_is_warned_of(
    quick: Callable[..., Settings], rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, sign_of_vote in (("good", 1), ("bad", -1)):
        file = save(tmp_path / f"{name}.npy", sign_of_vote * teacher_logits(rows)["llama"])
        run_mode("student-distill-train", **quick(name, distill_teachers=file, student_max_steps=1))
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith(f"teacher       {name}: 160 of 160 rows") for line in lines)
        assert any("at no temperature" in line for line in lines) == (name == "bad")


def test_what_is_said_of_a_teacher_comes_without_warnings_of_python(
    rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    certain = (9 * targets(rows)).astype(np.float32)
    for number, logits in enumerate((certain, -certain)):
        labels = read_label_files([save(tmp_path / f"{number}.npy", logits)], rows, small_train_csv)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ("WARNING" in labels.report(rows)) == (number == 1)


def test_a_student_is_up_to_date_until_something_that_teaches_it_changes(
    quick: Callable[..., Settings], rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = teacher_logits(rows)["llama"]
    file = save(tmp_path / "t.npy", said)
    settings = quick("s", distill_teachers=file)
    one = trained("student-distill-train", settings)
    shutil.copy(file, tmp_path / "copy.npy")
    capsys.readouterr()
    assert trained("student-distill-train", settings | {"distill_teachers": tmp_path / "copy.npy"}) == one
    assert "up to date" in capsys.readouterr().out
    save(file, said[::-1])
    assert trained("student-distill-train", settings) != one
    assert "replaces the one that is there (other teacher_0)" in capsys.readouterr().out
    trained("student-train", settings)
    capsys.readouterr()
    trained("student-train", settings | {"distill_alpha": 0.1, "distill_teachers": "nowhere.npy"})
    assert "up to date" in capsys.readouterr().out, "without teachers no setting of theirs counts"


# Which row hears what


def test_a_row_without_teachers_learns_from_its_vote_with_full_weight(
    quick: Callable[..., Settings], rows: Rows, backbones: Path, tmp_path: Path
) -> None:
    """One row a step: until the one row that a teacher speaks of has its turn, nothing differs from votes alone."""
    before = 2  # steps until then
    one_a_step = {"student_train_batch_size": 1, "student_warmup_ratio": 0}
    train = load_student_data(settings_for("student-train", **quick("unused"))).train
    tokenizer = load_tokenizer(str(backbones / "bert"))
    dataset = make_dataset(train, tokenizer, TextFormat.for_tokenizer(tokenizer), 48, swap_too=False)
    heard = list(LengthGroupedSampler(dataset.lengths, 1, 42, whole_batches=True))[before]
    said = np.full((len(rows), 3), np.nan, np.float32)
    said[train["base_idx"][heard].as_py()] = [5.0, 0.0, -5.0]
    teachers = {"distill_teachers": save(tmp_path / "t.npy", said)}
    for steps in (before, before + 1):
        settings = one_a_step | {"student_max_steps": steps}
        votes = trained("student-train", quick(f"v{steps}", **settings))
        distilled = trained("student-distill-train", quick(f"d{steps}", **settings, **teachers))
        assert (distilled == votes) == (steps == before)


@pytest.mark.parametrize("orders", [1, 2])
def test_every_row_hears_its_own_teachers_however_the_rows_were_chosen(
    orders: int, quick: Callable[..., Settings], rows: Rows, tmp_path: Path
) -> None:
    """Teachers that are certain of each row's vote teach, with alpha 1 at T = 1, what the votes teach: to the byte.

    One row's label in another row's place, or of an extra row, would be another loss.
    """
    chosen = {
        "student_max_samples": 70,
        "student_dedup_by_prompt": True,
        "student_extra_csvs": f"{SAMPLE / 'ultrafeedback_ties.csv'},{extra_csv(rows, tmp_path)}",
        "student_shuffle_ab": True,
        "student_swap_augment": orders == 2,
        "student_label_smoothing": 0,
        "student_max_steps": 6,
    }
    data = load_student_data(settings_for("student-train", **quick("unused", **chosen)))
    assert data.counts.shuffled_extra and data.counts.duplicate_base and data.counts.duplicate_extra
    base_idx = data.train["base_idx"].to_numpy()
    assert 0 < (base_idx >= 0).sum() < 70 < (base_idx < 0).sum()
    certain = (200 * targets(rows)).astype(np.float32)
    weights = {"votes": trained("student-train", quick("votes", **chosen))}
    for name, said in (("own", certain), ("shifted", np.roll(certain, 1, axis=0))):
        save_folds(tmp_path / name, rows, {"one": said, "two": said})
        teachers = {"distill_teachers": tmp_path / name / "*" / "*.npy", "distill_alpha": 1, "distill_temp": 1}
        weights[name] = trained("student-distill-train", quick(f"{name}_student", **chosen, **teachers))
    assert weights["own"] == weights["votes"]
    assert weights["shifted"] != weights["votes"]


def extra_csv(rows: Rows, tmp_path: Path) -> Path:
    """Votes of other answers on prompts of base rows: duplicates by prompt, and some held out."""
    path = tmp_path / "extra.csv"
    with (
        (SAMPLE / "train.csv").open(newline="", encoding="utf-8") as source,
        path.open("w", newline="", encoding="utf-8") as out,
    ):
        reader = csv.DictReader(source)
        writer = csv.DictWriter(out, reader.fieldnames or ())
        writer.writeheader()
        for line in islice(reader, len(rows)):
            writer.writerow(line | {"response_a": line["response_b"], "response_b": line["response_a"]})
    return path


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_rows_with_and_without_teachers_are_counted_and_few_are_warned_of(
    share: float, quick: Callable[..., Settings], rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = teacher_logits(rows)
    silent = np.arange(len(rows)) >= share * len(rows)
    for logits in said.values():
        logits[silent] = np.nan
    said["qwen2"][:10] = np.nan  # the other one speaks there
    save_folds(tmp_path / "t", rows, said)
    settings = quick(
        "s",
        distill_teachers=tmp_path / "t" / "*" / "*.npy",
        student_extra_csvs=SAMPLE / "ultrafeedback_ties.csv",
        student_max_steps=1,
    )
    run_mode("student-distill-train", **settings)
    out = capsys.readouterr().out
    base_idx = load_student_data(settings_for("student-distill-train", **settings)).train["base_idx"].to_numpy()
    extra, base = base_idx < 0, base_idx >= 0
    heard = base & ~silent[base_idx]
    assert extra.sum() > 10 and 0 < heard.sum() < base.sum()
    assert (
        f"distillation  {heard.sum()} of {len(base_idx)} training rows have teachers' labels; votes alone teach "
        f"{(base & ~heard).sum()} base rows and {extra.sum()} extra rows" in out
    )
    assert manifest_of(directory_of(settings))["rows"]["with_teacher_labels"] == heard.sum()
    assert ("WARNING: fewer than half of the base rows" in out) == (share < 0.5)


@pytest.mark.parametrize("schedule", ["", "linear:5,2"])
def test_probabilities_teach_what_the_logits_teach_that_they_came_from(
    schedule: str, quick: Callable[..., Settings], rows: Rows, backbones: Path, tmp_path: Path
) -> None:
    """At every temperature: the logarithm gives the logits back but for a constant, which softmax ignores."""
    logits = teacher_logits(rows)["llama"] + np.arange(len(rows), dtype=np.float32)[:, None] % 7
    logits[::9] = np.nan
    tensors = []
    for name, values, said in (
        ("logits", "logits", logits),
        ("probabilities", "probabilities", soft(logits)),
        ("others", "probabilities", soft(logits * 0.9)),
    ):
        settings = quick(
            name,
            distill_teachers=save(tmp_path / f"{name}.npy", said),
            distill_teacher_values=values,
            distill_temp=1,
            distill_temp_schedule=schedule,
            student_model=backbones / "llama",  # no biases, which have gradients of rounding alone
        )
        run_mode("student-distill-train", **settings)
        tensors.append(load_file(directory_of(settings) / WEIGHTS))
    same, other = (max(np.abs(found[name] - tensors[0][name]).max() for name in found) for found in tensors[1:])
    assert same < 1e-5 < 1e-4 < other


def test_probabilities_of_exactly_zero_are_read_as_finite_logits(
    rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    certain = targets(rows).astype(np.float32)
    file = save(tmp_path / "t.npy", certain)
    labels = read_label_files([file], rows, small_train_csv, probabilities=True)
    assert np.isfinite(labels.logits).all()
    np.testing.assert_allclose(softmax(labels.logits[:, 0]), certain, atol=1e-30)


# Refusals


@dataclass(frozen=True)
class Case:
    """A file that cannot teach, or settings that mean nothing: what to give, and words of the message."""

    make: Callable[[Path, Rows, Path], object]  # directory, base rows, base file -> --distill-teachers
    words: tuple[str, ...]


def _array(change: Callable[[np.ndarray], np.ndarray], *words: str) -> Case:
    def make(directory: Path, rows: Rows, train_csv: Path) -> Path:
        return save(directory / "bad.npy", change(teacher_logits(rows)["llama"]))

    return Case(make, ("bad.npy", *words))


def _half_a_row(logits: np.ndarray) -> np.ndarray:
    logits[17, 1] = np.nan
    return logits


def _infinite(logits: np.ndarray) -> np.ndarray:
    logits[3, 0] = np.inf
    return logits


def _of_another_file(directory: Path, rows: Rows, train_csv: Path) -> Path:
    file, *_ = save_folds(directory / "t", rows, {"llama": teacher_logits(rows)["llama"]}, SAMPLE / "train.csv")
    return file


def _changed_since(directory: Path, rows: Rows, train_csv: Path) -> Path:
    logits = teacher_logits(rows)["llama"]
    file, *_ = save_folds(directory / "t", rows, {"llama": logits}, train_csv)
    return save(file, logits)


def _nothing_there(directory: Path, rows: Rows, train_csv: Path) -> str:
    return f"{save(directory / 'good.npy', teacher_logits(rows)['llama'])},{directory}/*.npz"


def _no_array(directory: Path, rows: Rows, train_csv: Path) -> Path:
    (directory / "torn.npy").write_bytes(save(directory / "good.npy", np.zeros((160, 3))).read_bytes()[:-8])
    return directory / "torn.npy"


def _archive(directory: Path, rows: Rows, train_csv: Path) -> Path:
    with (directory / "archive.npy").open("wb") as stream:
        np.savez(stream, logits=teacher_logits(rows)["llama"])
    return directory / "archive.npy"


def _pickle(directory: Path, rows: Rows, train_csv: Path) -> Path:
    return save(directory / "pickle.npy", np.array([[print] * 3] * 160, dtype=object))


def _probabilities(logits: np.ndarray) -> np.ndarray:
    logits[5] = np.nan
    return soft(logits)


BAD_FILES = {
    "a row too few": _array(lambda logits: logits[:-1], "shape (159, 3)", "(160, 3)", "train.csv"),
    "two classes": _array(lambda logits: logits[:, :2], "shape (160, 2)", "(160, 3)"),
    "transposed": _array(lambda logits: logits.T, "shape (3, 160)", "(160, 3)"),
    "one more axis": _array(lambda logits: logits[None], "shape (1, 160, 3)", "(160, 3)"),
    "integers": _array(lambda logits: logits.astype(np.int64), "int64", "not floating point"),
    "half a row": _array(_half_a_row, "row 17", "nan", "run step 4 again"),
    "infinite": _array(_infinite, "row 3", "inf"),
    "nothing said": _array(lambda logits: np.full_like(logits, np.nan), "every row is NaN"),
    "probabilities": _array(
        _probabilities, "WARNING", "teacher_logits_fold_K.npy and not teacher_probs_fold_K.npy", "probabilities"
    ),
    "half-precision probabilities": _array(lambda logits: soft(logits).astype(np.float16), "WARNING"),
    "of another data file": Case(_of_another_file, ("teacher_logits_fold_0.npy", "another data file", "train.csv")),
    "changed since": Case(_changed_since, ("teacher_logits_fold_0.npy", "changed since step 4 wrote it")),
    "no file": Case(_nothing_there, ("*.npz matches no file", "teacher_logits/NAME_fold_K")),
    "torn": Case(_no_array, ("torn.npy", "not a readable .npy file")),
    "archive": Case(_archive, ("archive.npy", "archive of arrays")),
    "pickle": Case(_pickle, ("pickle.npy", "not a readable .npy file")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_teach_is_refused_by_name_and_an_older_student_stays(
    name: str,
    student: Settings,
    rows: Rows,
    small_train_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = BAD_FILES[name]
    shutil.copytree(directory_of(student), tmp_path / "old")
    given = case.make(tmp_path, rows, small_train_csv)
    before = contents(tmp_path), {path for path in tmp_path.rglob("*") if path.is_dir()}
    for place in ("old", "new"):
        settings = student | {"student_output_model_dir": tmp_path / place, "distill_teachers": given}
        assert main_py(monkeypatch, "student-distill-train", settings) == EXIT_BAD_INPUT
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1, error
        for word in case.words:
            assert word in error, error
    assert (contents(tmp_path), {path for path in tmp_path.rglob("*") if path.is_dir()}) == before


BAD_SETTINGS: dict[str, tuple[Settings, str]] = {
    "fold beyond the last": ({"cv_fold_idx": 5}, "0 … 4"),
    "fold beyond the last of three": ({"cv_fold_idx": 3, "cv_num_folds": 3}, "0 … 2"),
    "fold before the first": ({"cv_fold_idx": -1}, "--cv-fold-idx"),
    "one fold": ({"cv_num_folds": 1}, "--cv-num-folds"),
    "half a schedule": ({"distill_temp_schedule": "linear:5"}, "linear:5,2"),
    "unknown schedule": ({"distill_temp_schedule": "cosine:5,2"}, "linear:5,2"),
    "schedule to zero": ({"distill_temp_schedule": "linear:5,0"}, "positive"),
    "alpha above one": ({"distill_alpha": 1.5}, "--distill-alpha"),
    "alpha below nothing": ({"distill_alpha": -0.1}, "--distill-alpha"),
    "no temperature": ({"distill_temp": 0}, "--distill-temp"),
    "negative weight": ({"distill_mse_weight": -1}, "--distill-mse-weight"),
    "unknown values": ({"distill_teacher_values": "logprobs"}, "'logits' or 'probabilities'"),
    "misspelt flag": ({"distill_tmep": 2}, "--distill-temp"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_mean_nothing_are_refused(
    name: str,
    quick: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad, word = BAD_SETTINGS[name]
    assert main_py(monkeypatch, "student-distill-train", quick("s", **bad)) == EXIT_BAD_SETTINGS
    assert word in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_misspelt_variable_is_refused_with_the_right_name(
    quick: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DISTILL_ALHPA", "0.5")
    for mode in ("student-distill-train", "student-train"):
        assert main_py(monkeypatch, mode, quick("s")) == EXIT_BAD_SETTINGS
        error = capsys.readouterr().err
        assert "DISTILL_ALHPA" in error and "did you mean DISTILL_ALPHA?" in error
    assert not list(tmp_path.iterdir())


def test_distilling_without_any_teachers_says_where_they_should_be(
    quick: Callable[..., Settings], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"matches no file -> step 4 writes them"):
        run_mode("student-distill-train", **quick("s", output_dir=tmp_path))


def test_raw_logits_given_as_probabilities_are_refused(
    quick: Callable[..., Settings], rows: Rows, tmp_path: Path
) -> None:
    file = save(tmp_path / "t.npy", teacher_logits(rows)["llama"])
    settings = quick("s", distill_teachers=file, distill_teacher_values="probabilities")
    with pytest.raises(InputError, match=r"t\.npy: holds no probabilities"):
        run_mode("student-distill-train", **settings)
    assert list(tmp_path.iterdir()) == [file]
