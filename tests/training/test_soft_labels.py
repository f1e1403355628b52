"""Soft labels: whatever could be wrong with a teacher's file is refused by name, and what is right keeps its rows."""

from __future__ import annotations

import re
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import as_extra, merge, shuffle_extra_ab
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import kaggle_log_loss, softmax
from arena_distill.inference.oof_table import OofFamily
from arena_distill.runtime.artifacts import sha256_file, write_manifest
from arena_distill.runtime.errors import EXIT_BAD_INPUT, EXIT_BAD_SETTINGS, InputError, SettingsError
from arena_distill.runtime.stages import ENSEMBLE, INFER_TEACHER_LOGITS, TRAIN_TEACHERS
from arena_distill.training.soft_labels import SoftLabels, find_label_files, labels_of_families, read_label_files
from tests.conftest import SAMPLE

N = 160
SETTING = "--distill-teachers"


@pytest.fixture(scope="module")
def rows(small_train_csv: Path) -> Rows:
    rows = load_labelled(small_train_csv).rows
    assert len(rows) == N
    return rows


def logits_of(seed: int, silent: slice | None = None) -> np.ndarray:
    """Float32 ``[N, 3]`` as step 4 would write."""
    logits = np.random.default_rng(seed).normal(0, 2, (N, 3)).astype(np.float32)
    if silent is not None:
        logits[silent] = np.nan
    return logits


def saved(directory: Path, array: np.ndarray, name: str = "labels.npy") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / name, array)
    return directory / name


def in_folds(root: Path, family: str, logits: np.ndarray, folds: int = 3) -> list[Path]:
    """One file a fold, each silent on the rows of the others."""
    files = []
    for fold in range(folds):
        part = np.full_like(logits, np.nan)
        part[fold::folds] = logits[fold::folds]
        files.append(saved(root / f"{family}_fold_{fold}", part, f"teacher_logits_fold_{fold}.npy"))
    return files


# Finding files


def test_paths_and_globs_are_found_in_the_order_given_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a", "c/deep/d"):
        saved((tmp_path / name).parent, logits_of(0), f"{Path(name).name}.npy")
    a, b, d = tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "c" / "deep" / "d.npy"
    assert find_label_files(f"{b}, {tmp_path}/*.npy ,", SETTING) == [b, a]
    assert find_label_files(f"{tmp_path}/**/*.npy", SETTING) == [a, b, d]
    (again,) = find_label_files(f"{a},{tmp_path}/c/../a.npy", SETTING)
    assert again.resolve() == a.resolve()
    monkeypatch.chdir(tmp_path)
    assert find_label_files("*.npy", SETTING) == [Path("a.npy"), Path("b.npy")]


@pytest.mark.parametrize("pattern", ["none.npy", "none_*.npy", "no/such/**/x.npy"])
def test_a_pattern_without_a_file_is_refused_by_name_even_beside_good_ones(pattern: str, tmp_path: Path) -> None:
    good = saved(tmp_path, logits_of(0))
    with pytest.raises(InputError) as caught:
        find_label_files(f"{good},{tmp_path}/{pattern}", SETTING)
    message = str(caught.value)
    assert message.startswith(f"{SETTING}: {tmp_path}/{pattern} matches no file")
    assert "teacher_logits_fold_K.npy" in message


# Refusals: each names the file and what was expected


def refusal(file: Path, rows: Rows, train_file: Path, probabilities: bool = False) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a number beyond float32
        with pytest.raises(InputError) as caught:
            read_label_files([file], rows, train_file, probabilities)
    message = str(caught.value)
    assert caught.value.exit_code == EXIT_BAD_INPUT
    assert message.startswith(f"{file}: ") and " -> " in message and "\n" not in message
    return message


def expects_shape(message: str, train_file: Path) -> bool:
    return (
        f"expected raw logits of shape ({N}, 3), one row for each of the {N} usable rows of {train_file.name}"
        in message
    )


def cut(file: Path, keep: int | float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])


def as_text(file: Path) -> None:
    np.savetxt(file, logits_of(0), delimiter=",")


def as_pickle(file: Path) -> None:
    logits_of(0).dump(file)


def as_object_array(file: Path) -> None:
    np.save(file, logits_of(0).astype(object), allow_pickle=True)


def as_ragged_object_array(file: Path) -> None:
    ragged = np.empty(N, dtype=object)
    ragged[:] = [np.zeros(3)] * N
    np.save(file, ragged, allow_pickle=True)


def as_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


NOT_NPY: dict[str, Callable[[Path], None]] = {
    "empty": lambda file: cut(file, 0),
    "magic number alone": lambda file: cut(file, 6),
    "cut off in its header": lambda file: cut(file, 60),
    "cut off in its data": lambda file: cut(file, 0.5),
    "one byte short": lambda file: cut(file, file.stat().st_size - 1),
    "text": as_text,
    "pickle": as_pickle,
    "array of objects": as_object_array,
    "ragged array": as_ragged_object_array,
    "missing": lambda file: file.unlink(),
    "directory": as_directory,
}


@pytest.mark.parametrize("spoil", NOT_NPY.values(), ids=NOT_NPY.keys())
def test_what_is_not_a_whole_array_of_numbers_is_refused(
    spoil: Callable[[Path], None], rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    file = saved(tmp_path, logits_of(0))
    spoil(file)
    message = refusal(file, rows, small_train_csv)
    assert "not a readable .npy file" in message and expects_shape(message, small_train_csv)


class Bomb:
    """What a pickle can do when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_no_code_of_a_pickled_array_is_run(rows: Rows, small_train_csv: Path, tmp_path: Path) -> None:
    array = np.empty(1, dtype=object)
    array[0] = Bomb(tmp_path / "ran")
    np.save(tmp_path / "labels.npy", array, allow_pickle=True)
    refusal(tmp_path / "labels.npy", rows, small_train_csv)
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "labels.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists(), "the file would have done nothing anyway: the test would prove nothing"


def test_an_archive_is_refused_as_one(rows: Rows, small_train_csv: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.npz"
    np.savez(file, logits=logits_of(0))
    message = refusal(file, rows, small_train_csv)
    assert "is an archive" in message and "numpy.save" in message and expects_shape(message, small_train_csv)


@pytest.mark.parametrize("keep", [4, 0.5, 0.9], ids=str)
def test_an_archive_cut_off_is_refused(keep: int | float, rows: Rows, small_train_csv: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.npz"
    np.savez(file, logits=logits_of(0))
    cut(file, keep)
    assert not zipfile.is_zipfile(file)
    assert expects_shape(refusal(file, rows, small_train_csv), small_train_csv)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_changed_in_the_header_are_refused_or_change_nothing_of_shape_and_type(
    changes: list[tuple[int, int]], rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    """No traceback, whatever a disk has done to it."""
    file = saved(tmp_path, logits_of(0))
    content = bytearray(file.read_bytes())
    for place, value in changes:
        content[place] = value
    file.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = read_label_files([file], rows, small_train_csv)
    except InputError as error:
        assert str(error).startswith(f"{file}: ")
    else:
        assert labels.logits.shape == (N, 1, 3) and labels.logits.dtype == np.float32


WRONG_TYPES = ["int64", "int8", "uint8", "bool", "complex64", "complex128", "U3", "S2", "datetime64[s]"]


@pytest.mark.parametrize("dtype", WRONG_TYPES)
def test_numbers_that_are_not_floating_point_are_refused_with_their_type(
    dtype: str, rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    file = saved(tmp_path, np.zeros((N, 3)).astype(dtype))
    message = refusal(file, rows, small_train_csv)
    assert f"has dtype {np.dtype(dtype)}, not floating point" in message and expects_shape(message, small_train_csv)


def test_an_array_of_records_is_refused(rows: Rows, small_train_csv: Path, tmp_path: Path) -> None:
    file = saved(tmp_path, np.zeros(N, dtype=[("a", "f4"), ("b", "f4"), ("tie", "f4")]))
    assert "not floating point" in refusal(file, rows, small_train_csv)


WRONG_SHAPES = [(N - 1, 3), (N + 1, 3), (N, 2), (N, 4), (N,), (3 * N,), (3, N), (N, 3, 1), (1, N, 3), (0, 3), ()]


@pytest.mark.parametrize("shape", WRONG_SHAPES, ids=str)
def test_another_shape_is_refused_with_both_shapes(
    shape: tuple[int, ...], rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    message = refusal(saved(tmp_path, np.ones(shape, np.float32)), rows, small_train_csv)
    assert f"has shape {shape}" in message and expects_shape(message, small_train_csv)


BAD_ROWS = {
    "partly NaN": [0.5, np.nan, 1.0],
    "two NaN": [np.nan, np.nan, 1.0],
    "infinite": [0.5, np.inf, 1.0],
    "log of zero": [0.5, -np.inf, 1.0],
    "wholly infinite": [np.inf] * 3,
    "NaN and infinite": [np.nan, np.inf, np.nan],
    "beyond float32": [1e300, 0.0, 0.0],
}


@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_row_that_is_neither_finite_nor_wholly_nan_is_refused_by_its_number(
    bad: list[float], probabilities: bool, rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    array = logits_of(0, silent=slice(0, 20)).astype(np.float64)
    array[[37, 90]] = bad
    message = refusal(saved(tmp_path, array), rows, small_train_csv, probabilities)
    assert f"row 37 (from 0) holds {array[37].tolist()}" in message
    assert "three finite numbers, or all NaN" in message


def test_a_teacher_that_never_speaks_is_refused(rows: Rows, small_train_csv: Path, tmp_path: Path) -> None:
    file = saved(tmp_path, logits_of(0, silent=slice(None)))
    assert "every row is NaN" in refusal(file, rows, small_train_csv)


# Probabilities and logits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("silent", [None, slice(0, N, 3), slice(1, N)], ids=["all speak", "some", "one speaks"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0])
def test_probabilities_are_refused_as_logits_in_every_precision_and_with_silent_rows(
    scale: float, silent: slice | None, dtype: type, rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    p: np.ndarray = softmax(logits_of(1) * scale).astype(dtype)
    if silent is not None:
        p[silent] = np.nan
    message = refusal(saved(tmp_path, p), rows, small_train_csv)
    assert "WARNING: these are probabilities" in message and "not raw logits" in message
    assert "teacher_logits_fold_K.npy" in message and "--distill-teacher-values probabilities" in message


def test_one_row_that_sums_to_something_else_shows_that_they_are_logits(
    rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    values = softmax(logits_of(1)).astype(np.float32)
    values[-1] = [0.5, 0.5, 0.5]
    labels = read_label_files([saved(tmp_path, values)], rows, small_train_csv)
    np.testing.assert_array_equal(labels.logits[:, 0], values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_given_on_purpose_become_logits_of_the_same_softmax(
    dtype: type, rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    p: np.ndarray = softmax(logits_of(2)).astype(dtype)
    p[5], p[6] = [1, 0, 0], np.nan
    labels = read_label_files([saved(tmp_path, p)], rows, small_train_csv, probabilities=True)
    logits = labels.logits[:, 0]
    speaks = np.arange(N) != 6
    assert np.isnan(logits[6]).all() and np.isfinite(logits[speaks]).all()
    expected = p[speaks].astype(np.float64)
    np.testing.assert_allclose(softmax(logits[speaks]), expected / expected.sum(axis=1, keepdims=True), atol=2e-7)
    np.testing.assert_allclose(logits[:5], np.log(p[:5].astype(np.float64)), rtol=1e-5, atol=1e-6)


NO_PROBABILITIES = {
    "raw logits": lambda p: np.log(p) + 1,
    "percent": lambda p: 100 * p,
    "a negative one": lambda p: np.where(np.arange(N)[:, None] == 9, np.array([1.1, -0.2, 0.1]), p),
    "one above 1": lambda p: np.where(np.arange(N)[:, None] == 9, np.array([1.5, 0.0, 0.0]), p),
    "a row with another sum": lambda p: np.where(np.arange(N)[:, None] == 9, 0.99 * p, p),
}


@pytest.mark.parametrize("change", NO_PROBABILITIES.values(), ids=NO_PROBABILITIES.keys())
def test_what_is_said_to_be_probabilities_and_is_not_is_refused(
    change: Callable[[np.ndarray], np.ndarray], rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    file = saved(tmp_path, change(softmax(logits_of(3))).astype(np.float32))
    message = refusal(file, rows, small_train_csv, probabilities=True)
    assert "holds no probabilities" in message and "--distill-teacher-values" in message


@pytest.mark.parametrize("dtype", [">f4", "<f8", "f2", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_floating_point_layout_is_read_as_the_same_numbers(
    order: str, dtype: str, rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    logits = logits_of(4).astype(np.float16).astype(dtype)
    file = saved(tmp_path, np.asarray(logits, order="F" if order == "F" else "C"))
    labels = read_label_files([file], rows, small_train_csv)
    assert labels.logits.dtype == np.float32
    np.testing.assert_array_equal(labels.logits[:, 0], logits.astype(np.float32))


# Where a file comes from


@pytest.fixture
def of_step4(tmp_path: Path, small_train_csv: Path) -> Path:
    """A file with the manifest that step 4 would leave beside it."""
    file = saved(tmp_path / "llama_fold_0", logits_of(5), "teacher_logits_fold_0.npy")
    sign(file, small_train_csv)
    return file


def sign(file: Path, train_csv: Path, stage: str = INFER_TEACHER_LOGITS.name) -> None:
    inputs = {"train_csv": sha256_file(train_csv), "folds_json": "x", "teacher": "y"}
    write_manifest(file.parent, stage=stage, settings={}, inputs=inputs, started=time.time())


def test_a_file_with_step_4s_manifest_is_taken_without_a_word(
    of_step4: Path, rows: Rows, small_train_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = read_label_files([of_step4], rows, small_train_csv)
    np.testing.assert_array_equal(labels.logits[:, 0], logits_of(5))
    assert capsys.readouterr().out == ""


def test_a_file_changed_since_step_4_wrote_it_is_refused(of_step4: Path, rows: Rows, small_train_csv: Path) -> None:
    np.save(of_step4, logits_of(5)[::-1])
    message = refusal(of_step4, rows, small_train_csv)
    assert "was changed since step 4 wrote it" in message and "INFER_FORCE_REGEN=1" in message


def test_a_file_that_step_4_did_not_write_there_is_refused(of_step4: Path, rows: Rows, small_train_csv: Path) -> None:
    other = Path(shutil.copyfile(of_step4, of_step4.with_name("teacher_logits_fold_9.npy")))
    assert "was changed since step 4 wrote it" in refusal(other, rows, small_train_csv)


def test_a_file_of_another_data_file_of_the_same_length_is_refused_with_that_file(
    of_step4: Path, rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    header, *lines = small_train_csv.read_text("utf-8").splitlines(keepends=True)
    other.write_text("".join([header, *lines, "\n"]), "utf-8")
    message = refusal(of_step4, rows, other)
    assert f"was made from another data file than {other}" in message


def test_a_broken_manifest_is_refused(of_step4: Path, rows: Rows, small_train_csv: Path) -> None:
    manifest = of_step4.with_name("manifest.json")
    manifest.write_text(manifest.read_text()[:-30])
    with pytest.raises(InputError, match=re.escape(str(manifest))):
        read_label_files([of_step4], rows, small_train_csv)


@pytest.mark.parametrize("stage", [None, TRAIN_TEACHERS.name])
def test_a_file_without_step_4s_manifest_is_taken_with_a_note(
    stage: str | None, rows: Rows, small_train_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path, logits_of(6))
    if stage is not None:
        sign(file, small_train_csv, stage)
    read_label_files([file], rows, small_train_csv)
    printed = capsys.readouterr().out
    assert f"note: {file} comes without step 4's manifest" in printed and "on trust" in printed


# Folds of one teacher


@pytest.mark.parametrize("backwards", [False, True])
def test_the_folds_of_a_teacher_are_one_teacher_that_speaks_of_all_rows(
    backwards: bool, rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    llama, qwen = logits_of(7), logits_of(8)
    files = in_folds(tmp_path, "llama", llama) + in_folds(tmp_path, "qwen", qwen)
    labels = read_label_files(files[::-1] if backwards else files, rows, small_train_csv)
    order = ("qwen", "llama") if backwards else ("llama", "qwen")
    assert labels.names == order and labels.weights == (1.0, 1.0)
    for name, logits in (("llama", llama), ("qwen", qwen)):
        np.testing.assert_array_equal(labels.logits[:, order.index(name)], logits)


def test_some_folds_of_a_teacher_leave_the_other_rows_silent(rows: Rows, small_train_csv: Path, tmp_path: Path) -> None:
    logits = logits_of(9)
    files = in_folds(tmp_path, "llama", logits)
    labels = read_label_files([files[0], files[2]], rows, small_train_csv)
    expected = logits.copy()
    expected[1::3] = np.nan
    np.testing.assert_array_equal(labels.logits, expected[:, None])


def test_files_that_speak_of_the_same_row_are_two_teachers_and_lose_nothing(
    rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    logits = logits_of(10)
    files = in_folds(tmp_path, "llama", logits)
    again = logits_of(11, silent=slice(1, N))  # speaks of row 0, as fold 0 does
    files.insert(2, saved(tmp_path / "llama_fold_7", again, "teacher_logits_fold_7.npy"))
    labels = read_label_files(files, rows, small_train_csv)
    assert labels.names == ("llama", "llama") and labels.weights == (1.0, 1.0)
    np.testing.assert_array_equal(labels.logits[:, 0], logits)
    np.testing.assert_array_equal(labels.logits[:, 1], again)


def test_files_outside_of_fold_directories_are_teachers_of_their_own_even_if_disjoint(
    rows: Rows, small_train_csv: Path, tmp_path: Path
) -> None:
    one, two = logits_of(12, slice(0, N, 2)), logits_of(13, slice(1, N, 2))
    files = [saved(tmp_path / "mine", one, "one.npy"), saved(tmp_path / "mine", two, "two.npy")]
    labels = read_label_files(files, rows, small_train_csv)
    assert labels.names == ("one", "two")
    np.testing.assert_array_equal(labels.logits, np.stack([one, two], axis=1))


def test_probabilities_in_folds_are_one_teacher_too(rows: Rows, small_train_csv: Path, tmp_path: Path) -> None:
    p = softmax(logits_of(14)).astype(np.float32)
    labels = read_label_files(in_folds(tmp_path, "llama", p), rows, small_train_csv, probabilities=True)
    assert labels.names == ("llama",)
    np.testing.assert_allclose(softmax(labels.logits[:, 0]), p, atol=1e-6)


# Step 4's table


def family(seed: int) -> OofFamily:
    logits = logits_of(seed)
    return OofFamily(logits, softmax(logits), np.zeros(N))


FAMILIES = {"llama": family(20), "qwen": family(21), ENSEMBLE: family(22)}
TABLE = Path("oof_probs.parquet")


@pytest.mark.parametrize(
    ("weights", "names", "resulting"),
    [
        ({}, ("llama", "qwen"), (1.0, 1.0)),
        ({"qwen": 2.0}, ("qwen",), (2.0,)),
        ({"qwen": 0.5, "llama": 3.0}, ("llama", "qwen"), (3.0, 0.5)),
    ],
)
def test_families_of_the_table_become_teachers_without_their_ensemble(
    weights: dict[str, float], names: tuple[str, ...], resulting: tuple[float, ...]
) -> None:
    labels = labels_of_families(FAMILIES, weights, TABLE, "STUDENT_TEACHERS")
    assert (labels.names, labels.weights) == (names, resulting)
    np.testing.assert_array_equal(labels.logits, np.stack([FAMILIES[name].logits for name in names], axis=1))


@pytest.mark.parametrize("unknown", ["gemma", ENSEMBLE, "Llama"])
def test_a_weight_for_a_family_that_is_not_there_is_refused_with_those_that_are(unknown: str) -> None:
    with pytest.raises(SettingsError) as caught:
        labels_of_families(FAMILIES, {"llama": 1.0, unknown: 2.0}, TABLE, "STUDENT_TEACHERS")
    assert caught.value.exit_code == EXIT_BAD_SETTINGS
    assert str(caught.value) == f"STUDENT_TEACHERS: {TABLE} has no teacher {unknown!r} -> it has llama, qwen"


# What they say of some rows


def two_teachers() -> SoftLabels:
    return SoftLabels(("a", "b"), np.stack([logits_of(30, slice(0, 50)), logits_of(31, slice(40, 60))], axis=1), (1, 2))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, N))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_labels_follow_their_rows_when_these_are_sampled_and_shuffled(seed: int, count: int, rows: Rows) -> None:
    chosen = np.random.default_rng(seed).choice(N, count)  # with repeats
    said = two_teachers().of(rows.take(chosen))
    assert said.dtype == np.float32
    np.testing.assert_array_equal(said, two_teachers().logits[chosen])


def test_extra_rows_take_no_labels_wherever_they_stand(rows: Rows) -> None:
    labels = two_teachers()
    merged, _ = shuffle_extra_ab(merge(rows.take([7, 3, 45]), [as_extra(rows.slice(60, 40))]), seed=0)
    order = np.random.default_rng(0).permutation(len(merged))
    merged = merged.take(order)
    index = merged["base_idx"].to_numpy()
    assert (index == -1).sum() == 40 and index[0] == -1
    said, heard = labels.of(merged), labels.heard(merged)
    assert np.isnan(said[index < 0]).all() and not heard[index < 0].any()
    for number in (7, 3, 45):
        place = int(np.flatnonzero(index == number)[0])
        np.testing.assert_array_equal(said[place], labels.logits[number])
        assert heard[place] == (number != 45)


def test_a_row_is_heard_if_any_teacher_speaks_of_it(rows: Rows) -> None:
    silent = np.zeros(N, dtype=bool)
    silent[40:50] = True  # of both
    np.testing.assert_array_equal(two_teachers().heard(rows), ~silent)


# The report


def good_logits(rows: Rows, strength: float = 1.5) -> np.ndarray:
    """Of a teacher that foretells many votes and contradicts some."""
    noise = np.random.default_rng(40).normal(0, 1, (len(rows), 3))
    return (strength * targets(rows) + noise).astype(np.float32)


def report_of(rows: Rows, logits: np.ndarray) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # see the last test
        return SoftLabels(("llama",), logits[:, None], (1.0,)).report(rows)


def test_a_good_teacher_is_reported_with_its_log_loss_and_without_a_warning(rows: Rows) -> None:
    logits, votes = good_logits(rows), targets(rows)
    logits[:30] = np.nan
    loss = kaggle_log_loss(softmax(logits[30:]), votes[30:])
    prior = kaggle_log_loss(np.tile(votes[30:].mean(axis=0), (N - 30, 1)), votes[30:])
    assert loss < prior
    report = report_of(rows, logits)
    assert report == f"teacher       llama: 130 of 160 rows, log loss {loss:.4f} (prior {prior:.4f})"


@pytest.mark.parametrize("strength", [0.5, 50.0])
def test_no_good_teacher_is_suspected_however_sure_of_itself(strength: float, rows: Rows) -> None:
    assert "WARNING" not in report_of(rows, strength * good_logits(rows))


ORDERS: dict[str, Callable[[int], np.ndarray]] = {
    "moved by one": lambda count: np.roll(np.arange(count), 1),
    "reversed": lambda count: np.arange(count)[::-1],
    "shuffled": lambda count: np.random.default_rng(41).permutation(count),
    "sorted as text": lambda count: np.array(sorted(range(count), key=str)),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_a_good_teacher_whose_rows_are_in_another_order_is_suspected(order: Callable[[int], np.ndarray]) -> None:
    rows = load_labelled(SAMPLE / "train.csv").rows  # of the few rows of the others, chance alone would foretell some
    logits = good_logits(rows, 4)
    assert "WARNING" not in report_of(rows, logits)
    report = report_of(rows, logits[order(len(rows))])
    assert report.startswith(f"teacher       llama: {len(rows):,} of {len(rows):,} rows, log loss ")
    assert SUSPICION.search(report)


SUSPICION = re.compile(r"\nWARNING: .* better than chance.* other data.* another order")


@pytest.mark.parametrize("order", [None, [1, 0, 2]], ids=["all turned against the votes", "A and B exchanged"])
@pytest.mark.parametrize("strength", [0.05, 1.0])
def test_a_teacher_that_contradicts_the_votes_is_suspected_however_unsure_of_itself(
    strength: float, order: list[int] | None, rows: Rows
) -> None:
    logits = strength * (-good_logits(rows) if order is None else good_logits(rows, 4)[:, order])
    assert SUSPICION.search(report_of(rows, logits))


def test_every_teacher_has_its_own_line_and_only_the_bad_one_a_warning(rows: Rows) -> None:
    good, bad = good_logits(rows), -good_logits(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = SoftLabels(("good", "bad", "too"), np.stack([good, bad, good], axis=1), (1, 1, 1)).report(rows)
    lines = report.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("teacher ")] == ["good:", "bad:", "too:"]
    assert [number for number, line in enumerate(lines) if "WARNING" in line] == [2]


def test_the_report_says_all_in_its_own_words_and_lets_no_python_warning_escape(rows: Rows) -> None:
    """A bare UserWarning about a temperature's bound would puzzle whoever reads the job's log."""
    labels = SoftLabels(("bad", "perfect"), np.stack([-good_logits(rows), 9 * targets(rows)], axis=1), (1, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "WARNING" in labels.report(rows)
    assert not [str(warning.message) for warning in caught]
