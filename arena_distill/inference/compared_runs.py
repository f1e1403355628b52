"""Runs of students found by name, scored on one labelled test file, and put side by side."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from arena_distill.data.loading import load_labelled, load_labels, load_test
from arena_distill.data.records import Rows
from arena_distill.evaluation.calibration_file import CALIBRATION_FILE, read_calibration, view_names
from arena_distill.evaluation.comparison import (
    Comparison,
    Difference,
    Line,
    Prediction,
    aligned,
    ensemble,
    format_differences,
    format_figures,
)
from arena_distill.evaluation.metrics import softmax
from arena_distill.evaluation.scoreboard import TRUTH_NAME, read_truth
from arena_distill.inference.tta import tta_views
from arena_distill.runtime.artifacts import (
    read_manifest,
    require_writable,
    sha256_file,
    write_atomically,
)
from arena_distill.runtime.errors import DataError, InputError, SettingsError

DEFAULT_STUDENT = "student_distilbert"
MIN_RESAMPLES = 100
_CONFIGS = ("config.json", "adapter_config.json")
_FOLD = re.compile(r"_fold_(\d+)$")
_WARM_UP_ROWS = 8

SECOND_ORDER_LEAK = (
    "CV figures of distilled students: their held-out rows were seen by the other folds' teachers (a second-order "
    "leak); the table above is of a test file."
)


@dataclass(frozen=True)
class Holdout:
    """Calibrated log loss on the rows that one student held out, as its calibration found it."""

    log_loss: float
    rows: int


@dataclass(frozen=True)
class FoundStudent:
    """One student on disk, as its manifest and its calibration describe it.

    Args:
        directory: where it is.
        max_length: length limit that it was trained with, tokens.
        temperature: that divides its logits; None where none was fitted.
        fitted_views: names of the views that the temperature was fitted with; empty where unknown.
        fold: the fold that it held out, or None.
        n_folds: of the run that the fold belongs to, or None.
        distilled: whether teachers' soft labels were learned.
        inputs: input name -> hash of the file it learned from.
        holdout: its own held-out score, where there is one.
    """

    directory: Path
    max_length: int
    temperature: float | None
    fitted_views: tuple[str, ...]
    fold: int | None
    n_folds: int | None
    distilled: bool
    inputs: Mapping[str, str]
    holdout: Holdout | None


@dataclass(frozen=True)
class FoundRun:
    """One run: the students of all its folds in order of the fold, or a single student."""

    name: str
    students: tuple[FoundStudent, ...]
    folded: bool


@dataclass(frozen=True)
class RunGroup:
    """Runs of one kind, such as one setting under several seeds; figures are means over them."""

    name: str
    runs: tuple[FoundRun, ...]

    @property
    def folded(self) -> bool:
        """Whether each run has a student for each fold."""
        return self.runs[0].folded

    @property
    def students(self) -> list[FoundStudent]:
        """Those of all runs."""
        return [student for run in self.runs for student in run.students]

    @property
    def line_names(self) -> list[str]:
        """Names of its lines in the table: of runs of folds the mean of the members, then the ensemble."""
        count, folds = len(self.runs), len(self.runs[0].students)
        if not self.folded:
            return [self.name if count == 1 else f"{self.name}, mean of {count} runs"]
        times = f" ×{count}" if count > 1 else ""
        return [f"{self.name}, mean of {folds} folds{times}", f"{self.name}, ensemble{times}"]


@dataclass(frozen=True)
class Scored:
    """What one student says of the test rows: calibrated probabilities ``[V, N, 3]``, in how many seconds."""

    prediction: Prediction
    seconds: float


def compare_runs(
    runs: Sequence[str],
    *,
    test_csv: Path,
    labels_csv: Path,
    truth_parquet: Path | None = None,
    train_csv: Path | None = None,
    output_dir: Path = Path(),
    student: str = DEFAULT_STUDENT,
    resamples: int = 2000,
    seed: int = 42,
    batch_rows: int = 32,
    swap: bool = True,
    json_file: Path | None = None,
) -> str:
    """Score students on a test file that nothing was fitted on.

    Args:
        runs: each ``NAME`` or ``LABEL=NAME1,NAME2,…``; see ``find_groups``.
        test_csv: rows to predict.
        labels_csv: votes on them, by id.
        truth_parquet: their true probabilities (see ``scoreboard.read_truth``): adds ``expected`` and the Bayes line.
        train_csv: labelled rows; adds the baselines, fitted on all of them.
        output_dir: runs are in its ``model_save/``.
        student: prefix of the students' directories in a run.
        resamples: of the bootstrap over prompts.
        seed: of the bootstrap.
        batch_rows: a batch holds at most this many times a student's length limit, tokens.
        swap: average over both orders of the answers.
        json_file: receives all figures.

    Returns:
        The report, ready to print.

    Raises:
        SettingsError: a run is given twice, runs of a group differ in kind, or a number is out of bounds.
        InputError: a run or a fold is missing, a student is damaged, or one was trained on the test file.
        DataError: a data file cannot be used, or a test row has no label.
    """
    if resamples < MIN_RESAMPLES or batch_rows < 1 or seed < 0:
        raise SettingsError(
            f"--bootstrap {resamples}, --batch-rows {batch_rows}, --seed {seed}: out of bounds -> give at least "
            f"{MIN_RESAMPLES}, 1 and 0"
        )
    # All that can be refused is refused here: models may take an hour.
    groups = find_groups(runs, output_dir, student)
    test = load_test(test_csv).rows
    ids = test["id"].to_pylist()
    votes = load_labels(labels_csv, ids)
    truth = read_truth(truth_parquet, ids) if truth_parquet else None
    prompts = test["prompt_hash"].to_numpy()
    if len(np.unique(prompts)) < 2:
        raise DataError("all rows share one prompt, so no interval can be given", file=test_csv, hint="add rows")
    refuse_trained_on(test_csv, groups)
    train = load_labelled(train_csv).rows if train_csv else None
    if json_file:
        given = [test_csv, labels_csv, truth_parquet, train_csv]
        if json_file.resolve() in {path.resolve() for path in given if path}:
            raise InputError(f"{json_file}: would overwrite an input -> choose another --json")
        require_writable(json_file)
    notes = [*_overlap(test, train, train_csv), *_other_views(groups, swap)]
    baselines = _baseline_lines(train, test)
    truth_lines = [] if truth is None else [Line(TRUTH_NAME, [[truth[None]]])]
    names = [line.name for line in (*baselines, *truth_lines)] + [name for group in groups for name in group.line_names]
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise SettingsError(f"{twice[0]!r} stands for two lines -> give the run another label: LABEL=NAME")
    for note in notes:  # before the work, and again below the table
        print(note)

    scored = score_students(groups, test, batch_rows=batch_rows, swap=swap)
    lines = [line for group in groups for line in _lines_of(group, scored, len(ids))]
    comparison = Comparison([*baselines, *lines, *truth_lines], votes, prompts, truth, resamples=resamples, seed=seed)
    differences = [comparison.difference(*pair) for pair in _pairs(groups)]
    if json_file:
        document = {
            "test": {"file": str(test_csv), "sha256": sha256_file(test_csv), "rows": len(ids)}
            | {"prompts": len(np.unique(prompts))},
            "settings": {"resamples": resamples, "seed": seed, "batch_rows": batch_rows, "swap": swap},
            "lines": [asdict(figures) for figures in comparison.figures],
            "differences": [asdict(difference) for difference in differences],
            "students": [_student_document(group, run, s, scored) for group, run, s in _each(groups)],
            "notes": notes,
        }
        write_atomically(json_file, json.dumps(document, indent=2) + "\n")
    return "\n".join(_report(comparison, differences, groups, notes, test_csv, swap))


def find_groups(runs: Sequence[str], output_dir: Path, prefix: str) -> list[RunGroup]:
    """What the command line names: each of ``runs`` is ``NAME`` or ``LABEL=NAME1,NAME2,…``.

    A name is a run in ``OUTPUT_DIR/model_save/``, or a directory that is itself a student.

    Raises:
        SettingsError: a name is missing, a run stands twice in a group, or runs of one group differ in kind.
        InputError: see ``find_run``.
    """
    groups = []
    for words in runs:
        label, equals, names = words.partition("=")
        if not equals or Path(words).is_dir():  # a path may hold a = of its own
            label, names = words, words
        members = [part.strip() for part in names.split(",")] if names != words else [words]
        if not label.strip() or not all(members):
            raise SettingsError(f"{words!r}: a name is missing -> give NAME or LABEL=NAME1,NAME2")
        found = tuple(find_run(name, output_dir, prefix) for name in members)
        places = [run.students[0].directory.resolve() for run in found]
        if twice := [run.name for number, run in enumerate(found) if places[number] in places[:number]]:
            raise SettingsError(f"{words!r}: {twice[0]} is there already and would pass for two runs -> name it once")
        if len({(run.folded, len(run.students)) for run in found}) > 1:
            kinds = ", ".join(
                f"{run.name}: {len(run.students)} {'folds' if run.folded else 'student'}" for run in found
            )
            raise SettingsError(f"{label}: its runs are not of one kind ({kinds}) -> compare them as separate runs")
        groups.append(RunGroup(label.strip(), found))
    return groups


def find_run(name: str, output_dir: Path, prefix: str) -> FoundRun:
    """A run's students: ``PREFIX_fold_K`` for every fold, or where there is none the single ``PREFIX``.

    Raises:
        InputError: there is no such run, it has no student or not that of every fold, or a student is not finished.
    """
    places = [output_dir / "model_save" / name, Path(name)]
    if student := next(filter(_is_student, places), None):
        return FoundRun(name, (read_student(student),), folded=False)
    directory = next(filter(Path.is_dir, places), None)
    if directory is None:
        raise InputError(
            f"{places[0]}: no such run, and {name} is no directory -> train it, or mend the name or --output-dir"
        )
    folds = {
        int(found[1]): path
        for path in directory.glob(f"{prefix}_fold_*")
        if path.is_dir() and (found := _FOLD.search(path.name)) and path.name == f"{prefix}_fold_{found[1]}"
    }
    if folds:
        return FoundRun(name, _all_folds(directory, prefix, folds), folded=True)
    if (directory / prefix).is_dir():
        return FoundRun(name, (read_student(directory / prefix),), folded=False)
    there = sorted(path.name for path in directory.iterdir() if _is_student(path))
    raise InputError(
        f"{directory}: no {prefix} and no {prefix}_fold_K there, but {', '.join(there) or 'no students at all'} -> "
        "choose with --student, or train it"
    )


def _all_folds(directory: Path, prefix: str, folds: Mapping[int, Path]) -> tuple[FoundStudent, ...]:
    students = {fold: read_student(path) for fold, path in sorted(folds.items())}
    for fold, student in students.items():
        if student.n_folds is None:
            raise InputError(f"{student.directory}: its manifest.json has no n_folds -> train it again")
        if student.fold != fold:
            raise InputError(f"{student.directory}: its manifest.json is of fold {student.fold} -> train it again")
    counts = {student.n_folds: student.directory for student in students.values() if student.n_folds}
    if len(counts) > 1:
        said = ", ".join(f"{path.name}: {count}" for count, path in counts.items())
        raise InputError(f"{directory}: its students disagree on the number of folds ({said}) -> train them again")
    n_folds = next(iter(counts))
    if absent := [fold for fold in range(n_folds) if fold not in students]:
        raise InputError(
            f"{directory / f'{prefix}_fold_{absent[0]}'}: missing; the run has {n_folds} folds, and "
            f"{len(absent)} of them {'is' if len(absent) == 1 else 'are'} not there -> train fold {absent[0]}"
        )
    if beyond := [fold for fold in students if fold >= n_folds]:
        raise InputError(f"{folds[beyond[0]]}: not one of the run's {n_folds} folds -> move it away")
    return tuple(students.values())


def read_student(directory: Path) -> FoundStudent:
    """What the files of a finished student say; loads no weights.

    Raises:
        InputError: it is not finished, its manifest lacks what is needed, or its temperature is of other weights.
    """
    manifest = read_manifest(directory)
    if manifest is None or not _is_student(directory):
        raise InputError(f"{directory}: no finished student there -> train it (--mode student-train)")
    trained_with = manifest.get("all_settings") or {}
    max_length = manifest.get("max_length") or trained_with.get("student_max_length")
    if not isinstance(max_length, int) or max_length < 1:
        raise InputError(f"{directory / 'manifest.json'}: has no max_length -> train the student again")
    named = _FOLD.search(directory.name)
    fold = int(named[1]) if manifest.get("fold") is None and named else manifest.get("fold")
    calibration = read_calibration(directory)
    document = {} if calibration is None else calibration.figures
    log_loss, rows = document.get("logloss_holdout_after"), document.get("rows_holdout")
    return FoundStudent(
        directory=directory,
        max_length=max_length,
        temperature=None if calibration is None else calibration.temperature,
        fitted_views=() if calibration is None else calibration.views,
        fold=fold,
        n_folds=manifest.get("n_folds"),
        distilled=bool(manifest.get("teachers")),
        inputs=dict(manifest.get("inputs") or {}),
        holdout=Holdout(float(log_loss), int(rows)) if log_loss is not None and rows else None,
    )


def refuse_trained_on(test_csv: Path, groups: Sequence[RunGroup]) -> None:
    """Refuse a test file that a student learned from.

    Raises:
        InputError: a student's manifest names the very file among its training files.
    """
    digest = sha256_file(test_csv)
    for _, _, student in _each(groups):
        for name, value in student.inputs.items():
            if name.startswith(("train_csv", "extra_csv")) and value == digest:
                raise InputError(
                    f"{test_csv}: {student.directory} was trained on this very file ({name}) -> give a test file that "
                    "nothing was fitted on"
                )


def score_students(groups: Sequence[RunGroup], rows: Rows, *, batch_rows: int, swap: bool) -> dict[Path, Scored]:
    """Every student's calibrated probabilities by directory, one model in memory at a time.

    Seconds are those of tokenizing and scoring, loading not counted; a few rows are scored before the clock starts,
    so that the first model does not pay for what the libraries set up once.
    """
    from arena_distill.inference.judge import load_judge
    from arena_distill.models.quiet import quiet_libraries
    from arena_distill.models.release import release_memory

    quiet_libraries()
    students = {student.directory.resolve(): student for _, _, student in _each(groups)}
    scored: dict[Path, Scored] = {}
    for number, (key, student) in enumerate(students.items(), start=1):
        views = tta_views([student.max_length], swap)
        judge = load_judge(student.directory, max_length=student.max_length, batch_rows=batch_rows)
        judge.view_logits(rows.slice(0, _WARM_UP_ROWS), views)
        started = time.perf_counter()
        logits = judge.view_logits(rows, views)
        seconds = time.perf_counter() - started
        scored[key] = Scored(softmax(logits, student.temperature or 1.0), seconds)
        print(f"{student.directory}: {len(rows):,} rows scored ({number} of {len(students)} students)")
        del judge
        release_memory()
    return scored


def _lines_of(group: RunGroup, scored: Mapping[Path, Scored], rows: int) -> Iterator[Line]:
    runs = [[scored[student.directory.resolve()] for student in run.students] for run in group.runs]
    star = any(student.temperature is None for student in group.students)
    speed = float(np.mean([rows / one.seconds for run in runs for one in run]))
    predictions = [[one.prediction for one in run] for run in runs]
    names = group.line_names
    yield Line(names[0], predictions, speed, star)
    if group.folded:
        speed = float(np.mean([rows / sum(one.seconds for one in run) for run in runs]))
        yield Line(names[1], [[ensemble(run)] for run in predictions], speed, star)


def _baseline_lines(train: Rows | None, test: Rows) -> list[Line]:
    if train is None:
        return []
    from arena_distill.evaluation.baselines import fit_baselines

    return [Line(name, [[model.predict(test)[None]]]) for name, model in fit_baselines(train).items()]


def _pairs(groups: Sequence[RunGroup]) -> Iterator[tuple[str, str]]:
    """Names of the lines to compare: each group with the first, like with like, then ensembles with their members."""
    first = groups[0].line_names
    for group in groups[1:]:
        names = group.line_names
        if len(names) == len(first):
            yield from zip(names, first, strict=True)
        else:
            yield from ((name, other) for name in names for other in first)
    for group in groups:
        if group.folded:
            mean, together = group.line_names
            yield together, mean


def _each(groups: Sequence[RunGroup]) -> Iterator[tuple[RunGroup, FoundRun, FoundStudent]]:
    return ((group, run, student) for group in groups for run in group.runs for student in run.students)


def _is_student(directory: Path) -> bool:
    return (directory / "manifest.json").is_file() and any((directory / name).is_file() for name in _CONFIGS)


def _overlap(test: Rows, train: Rows | None, train_csv: Path | None) -> list[str]:
    if train is None:
        return []
    shared = int(pc.sum(pc.is_in(test["prompt_hash"], train["prompt_hash"].combine_chunks())).as_py())
    same = int(pc.sum(pc.is_in(test["row_hash"], train["row_hash"].combine_chunks())).as_py())
    if not shared:
        return []
    whole = f", {same:,} of them with the same answers" if same else ""
    return [f"note: {shared:,} of {len(test):,} test rows have a prompt of the training file ({train_csv}){whole}"]


def _other_views(groups: Sequence[RunGroup], swap: bool) -> list[str]:
    def differ(student: FoundStudent) -> bool:
        used = view_names(tta_views([student.max_length], swap))
        return bool(student.fitted_views) and student.fitted_views != used

    students = {s.directory.resolve(): s for _, _, s in _each(groups) if differ(s)}
    if not students:
        return []
    one = next(iter(students.values()))
    return [
        f"note: temperatures fitted with other views than are used here: {len(students)}, such as that of "
        f"{one.directory} ({', '.join(one.fitted_views)})"
    ]


def _report(
    comparison: Comparison,
    differences: Sequence[Difference],
    groups: Sequence[RunGroup],
    notes: Sequence[str],
    test_csv: Path,
    swap: bool,
) -> Iterator[str]:
    rows, prompts = len(comparison.targets), len(np.unique(comparison.clusters))
    orders = "both orders averaged" if swap else "one order"
    timed = f"rows/s with {'both orders' if swap else 'one order'}, loading not counted"
    yield format_figures(
        comparison.figures,
        f"Test rows of {test_csv.name} ({rows:,} rows, {prompts:,} prompts; {orders}; {timed})",
    )
    yield (
        f"intervals: 95 %, {comparison.resamples:,} bootstrap resamples of the prompts; they cover the choice of test "
        "rows, not that of seeds"
    )
    if any(len(group.runs) > 1 for group in groups):
        yield "×S, mean of S runs: each figure is the mean over the S runs of its group"
    if comparison.truth is not None:
        yield "expected: cross entropy against the true probabilities, free of the luck of the votes"
    bare = {str(s.directory): None for _, _, s in _each(groups) if s.temperature is None}
    if bare:
        yield f"* not calibrated (no {CALIBRATION_FILE}, so T = 1): {', '.join(bare)}"
    yield from notes
    if differences:
        yield ""
        yield format_differences(differences, "Paired differences (below 0: the first is better)")
    yield from _holdout_table(groups)


def _holdout_table(groups: Sequence[RunGroup]) -> Iterator[str]:
    """The students' own held-out scores, each group's by mean over its runs, a run's by mean over its held-out rows."""
    lines, distilled_folds, left_out = [], False, []
    for group in groups:
        figures = [[student.holdout for student in run.students] for run in group.runs]
        known = [[one for one in run if one is not None] for run in figures]
        if not any(known):
            continue
        if any(len(a) < len(b) for a, b in zip(known, figures, strict=True)):
            left_out.append(group.name)
            continue
        means = [np.average([one.log_loss for one in run], weights=[one.rows for one in run]) for run in known]
        rows = round(float(np.mean([sum(one.rows for one in run) for run in known])))
        name = f"{group.name}, {'cross-validated' if group.folded else 'holdout'}"
        lines.append([name, f"{np.mean(means):.4f}", f"{rows:,}", str(len(group.runs))])
        distilled_folds |= any(s.distilled for s in group.students)
    if lines:
        yield ""
        yield f"Held-out rows of the training file, as each student's {CALIBRATION_FILE} has it"
        yield from aligned([["model", "log loss", "rows a run", "runs"], *lines])
        if distilled_folds:
            yield SECOND_ORDER_LEAK
    for name in left_out:
        yield f"{name}: no such figure for some of its students -> run student-calibrate for each"


def _student_document(
    group: RunGroup, run: FoundRun, student: FoundStudent, scored: Mapping[Path, Scored]
) -> dict[str, Any]:
    prediction = scored[student.directory.resolve()]
    return {
        "group": group.name,
        "run": run.name,
        "directory": str(student.directory),
        "fold": student.fold,
        "distilled": student.distilled,
        "max_length": student.max_length,
        "temperature": student.temperature,
        "seconds": prediction.seconds,
        "holdout": asdict(student.holdout) if student.holdout else None,
    }
