"""The work of step 6: average, prove, publish; merge, prove, score, publish.

The other average is made too, in a hidden directory that goes at the end, so that the two can be told apart in numbers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arena_distill.conversion.average_job import STAGE, AveragePlan
from arena_distill.conversion.average_parity import (
    AVERAGE_BOUND,
    PARITY_ROWS,
    PROBABILITY_BOUND,
    checked_average,
    checked_gap,
    checked_weights,
)
from arena_distill.conversion.average_scores import (
    Averaged,
    evaluate,
    fold_temperatures,
    fold_views,
    held_out_table,
    mean_temperature,
)
from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.students import FoldStudent, require_base_of, require_unchanged, same_start
from arena_distill.data.find_file import find_file
from arena_distill.data.loading import load_texts
from arena_distill.data.prompts import TEXT_FORMAT_FILE
from arena_distill.data.records import Rows
from arena_distill.evaluation.calibration_file import write_calibration
from arena_distill.evaluation.eval_rows import EvalRows, load_eval_rows
from arena_distill.models.adapters import base_of_adapter
from arena_distill.models.average import AverageError, Method, relative_distance, require_alike, write_average
from arena_distill.models.backbone import check_backbone, local_directory
from arena_distill.models.head_file import head_sha256, read_head, save_head
from arena_distill.models.lora_file import ADAPTER_WEIGHTS, LoraAdapter, read_adapter
from arena_distill.models.merge import StageOutput, merge_adapter, require_space, tokenizer_files
from arena_distill.runtime.artifacts import (
    fingerprint,
    locked,
    nearest_existing,
    partial_directory,
    publish,
    read_manifest,
    sha256_file,
    write_manifest,
)
from arena_distill.runtime.errors import InputError


@dataclass(frozen=True)
class _Work:
    """What was read and checked before anything is written."""

    settings: AverageSettings
    plan: AveragePlan
    base: str
    adapters: list[LoraAdapter]
    temperatures: list[float]
    eval_rows: EvalRows | None
    parity_rows: Rows
    parity_file: Path

    @property
    def students(self) -> list[FoldStudent]:
        """Of the folds."""
        return self.plan.students

    @property
    def method(self) -> Method:
        """Which average is published."""
        return self.settings.average_method

    @property
    def other(self) -> Method:
        """Which is made for comparison."""
        return "mean" if self.method == "exact" else "exact"

    def rank(self, method: Method) -> int:
        """What the average is cut back to; 0: it is whole."""
        return self.settings.average_rank if method == self.method else 0


@dataclass(frozen=True)
class _Comparison:
    """Figures of the two averages."""

    exact: AverageError
    distance: float


def convert(settings: AverageSettings, plan: AveragePlan) -> None:
    """Make both outputs, or the merged one alone where the averaged adapter is there already.

    Raises:
        ArenaError: see ``average_students``.
    """
    started = time.time()
    work = _begin(settings, plan)
    lora = plan.lora.final
    with locked(lora):
        partial, compared = partial_directory(lora), partial_directory(lora, "compared")
        try:
            finished = not settings.force and plan.lora.is_up_to_date()
            if finished:
                print(f"{lora}: up to date")
            else:
                _write(work, work.method, partial)
            _write(work, work.other, compared)
            comparison = _compare(work, lora if finished else partial, compared)
            if not finished:
                _publish_average(work, partial, started)
            _merge(work, compared, comparison)
        finally:
            for scratch in (partial, compared):
                shutil.rmtree(scratch, ignore_errors=True)


def _begin(settings: AverageSettings, plan: AveragePlan) -> _Work:
    """Read what is small and check what can be checked: a broken file should show now and not in an hour."""
    students = plan.students
    for student in students:
        require_unchanged(student)
    base = check_backbone(settings.base_model or base_of_adapter(students[0].directory), "BASE_MODEL")
    if not require_base_of(students, base):
        print(f"note: {base} cannot be compared with the base that the students record; names and shapes must do")
    adapters = [read_adapter(student.directory) for student in students]
    require_alike(adapters)
    temperatures = fold_temperatures(students)
    eval_rows = load_eval_rows(settings) if plan.test_file else None
    if eval_rows is not None:
        print(eval_rows.summary)
        file, rows = eval_rows.test_file, eval_rows.rows
        _note_known_prompts(settings, students, eval_rows)
    else:
        file, rows = _some_rows(settings, students)
    size = max(adapter.weights_file.stat().st_size for adapter in adapters)
    require_space(nearest_existing(plan.lora.final), size * (len(students) + 1))
    _notes(students)
    return _Work(settings, plan, base, adapters, temperatures, eval_rows, rows.slice(0, PARITY_ROWS), file)


def _train_file(settings: AverageSettings, students: Sequence[FoldStudent]) -> Path:
    """The votes that the students were trained on, if they are still where they were or where they are by default.

    Raises:
        InputError: there is no such file.
    """
    recorded = str((students[0].manifest.get("all_settings") or {}).get("train_csv") or "")
    file = find_file(settings.train_csv or (recorded if Path(recorded).is_file() else ""), "train", "TRAIN_CSV")
    if not file.is_file():
        raise InputError(f"TRAIN_CSV={file}: no such file -> give the TRAIN_CSV of step 5")
    return file


def _some_rows(settings: AverageSettings, students: Sequence[FoldStudent]) -> tuple[Path, Rows]:
    """Any real rows will do to compare two models with each other."""
    try:
        file = _train_file(settings, students)
    except InputError as error:
        raise InputError(f"no rows to compare the merged model on ({error}) -> give TEST_CSV, or TRAIN_CSV") from error
    return file, load_texts(file)


def _note_known_prompts(settings: AverageSettings, students: Sequence[FoldStudent], test: EvalRows) -> None:
    """Rows whose prompt was trained on flatter every model alike; said if the training votes are at hand."""
    with suppress(InputError):
        file = _train_file(settings, students)
        if sha256_file(file) == students[0].manifest["inputs"]["train_csv"]:
            known = int(np.isin(test.prompts, load_texts(file)["prompt_hash"].to_numpy()).sum())
            if known:
                print(f"note: {known:,} of {len(test.rows):,} test rows have a prompt that {file} has too")


def _notes(students: Sequence[FoldStudent]) -> None:
    if len(students) == 1:
        print(f"note: one fold only: the average is the student of fold {students[0].fold}")
    if not same_start(students):
        print(
            "note: the students started from different factors (initial_sha256): the mean of their factors has no "
            "meaning, and is made for comparison only"
        )
    if {student.manifest.get("base_bits") for student in students} == {"nf4"}:
        print("note: the students were trained on a base of 4 bits; here its weights have 16 or 32")
    teachers = [student.manifest.get("teachers") for student in students]
    if any(heard != teachers[0] for heard in teachers):
        print("note: the students listened to different teachers, see their manifests")


def _write(work: _Work, method: Method, directory: Path) -> None:
    """An averaged student with all that its directory needs but the manifest."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_average(work.adapters, directory, method, work.rank(method))
    first = work.students[0].directory
    for file in (*tokenizer_files(first), first / TEXT_FORMAT_FILE):
        shutil.copyfile(file, directory / file.name)
    _complete(work, directory)


def _complete(work: _Work, directory: Path) -> None:
    """The head beside the weights, and the temperature."""
    save_head(directory)
    report = {
        "temperature": mean_temperature(work.temperatures),
        "fitted_on": "geometric mean over folds",
        "folds": {student.fold: t for student, t in zip(work.students, work.temperatures, strict=True)},
        "second_order_leak": work.plan.details["second_order_leak"],
    }
    write_calibration(directory, report, fold_views(work.plan.max_length))


def _compare(work: _Work, own: Path, other: Path) -> _Comparison:
    """Hold both averages, as they stand on the disk, against the folds and against each other."""
    errors = {}
    for method, directory in ((work.method, own), (work.other, other)):
        rank = work.rank(method)
        error = checked_average(directory, work.adapters, method, cut_back=rank > 0)
        errors[method] = error
        print(f"average, {method}: {_in_words(method, rank, error)}")
    exact, mean = (own, other) if work.method == "exact" else (other, own)
    distance = relative_distance(read_adapter(exact), read_adapter(mean))
    print(
        f"the two averages are {distance.overall:.2%} of the exact one's size apart (Frobenius, all modules); "
        f"most in {distance.module}: {distance.largest:.2%}"
    )
    return _Comparison(errors["exact"], distance.overall)


def _in_words(method: Method, rank: int, error: AverageError) -> str:
    if rank:
        return (
            f"cut back to rank {rank}, which loses at most {error.frobenius:.2%} of a module's change (Frobenius; its "
            f"largest entry: {error.largest_entry:.2%}; worst: {error.module})"
        )
    what = "the mean of the folds' weight changes" if method == "exact" else "the folds' mean A and mean B"
    return (
        f"as written, it is {what}: relative error {error.frobenius:.2g} (Frobenius), {error.largest_entry:.2g} "
        f"(largest entry), bound {AVERAGE_BOUND}"
    )


def _publish_average(work: _Work, partial: Path, started: float) -> None:
    job = work.plan.lora
    details = _details(work, partial) | {"method": work.method, "all_settings": work.settings.dump()}
    write_manifest(partial, stage=STAGE, settings=job.settings, inputs=job.inputs, started=started, details=details)
    publish(partial, job.final)
    adapter = read_adapter(job.final)
    print(
        f"{job.final}: average of folds {', '.join(map(str, work.plan.folds))}, {work.method}; "
        f"{len(adapter.pairs)} modules, rank {adapter.config['r']}; averaged whole: "
        f"{', '.join(adapter.replacements) or 'nothing'}; {adapter.weights_file.stat().st_size / 1e6:.1f} MB"
    )


def _details(work: _Work, directory: Path) -> dict[str, Any]:
    return {
        **work.plan.details,
        "base_model": work.base,
        "head_sha256": head_sha256(read_head(directory)),
    }


def _merge(work: _Work, compared: Path, comparison: _Comparison) -> None:
    lora, merged = work.plan.lora.final, work.plan.merged
    output = StageOutput(
        stage=STAGE,
        settings=merged.settings,
        inputs=merged.inputs,
        complete=lambda partial: _prove(work, partial, compared, comparison),
    )
    dtype = work.settings.merged_dtype or None
    report = merge_adapter(work.base, lora, merged.final, dtype=dtype, force=True, output=output)
    print(f"{merged.final}: {report.summary()}")


def _prove(work: _Work, merged: Path, compared: Path, comparison: _Comparison) -> Mapping[str, Any]:
    """Compare the merged model with base and adapter, and score it; details for its manifest."""
    lora = work.plan.lora.final
    shutil.copyfile(lora / TEXT_FORMAT_FILE, merged / TEXT_FORMAT_FILE)
    _complete(work, merged)
    weights = checked_weights(work.base, lora, merged, work.settings.merged_dtype or None)
    print(f"merged: every tensor is base + adapter: relative error {weights.weight:.2g}, bound {weights.bound:.2g}")
    rows = work.parity_rows
    gap = checked_gap(work.base, lora, merged, rows, work.plan.max_length, weights.narrowest)
    print(
        f"merged: probabilities for {len(rows)} rows of {work.parity_file} are those of base + adapter: largest gap "
        f"{gap:.2g}, bound {PROBABILITY_BOUND[weights.narrowest]}"
    )
    exact, mean = (lora, compared) if work.method == "exact" else (compared, lora)
    evaluation = None
    if work.eval_rows is not None and work.eval_rows.votes is not None:
        made = Averaged(exact, mean, merged)
        evaluation = evaluate(work.settings, work.students, work.temperatures, made, work.base, work.eval_rows)
        evaluation["test_csv"] = work.plan.merged.inputs["test_csv"]
    else:
        print(held_out_table(work.students))
        print(
            "no votes are at hand on rows that none of the students has seen: each fold's rows trained the others -> "
            "give TEST_CSV and LABELS_CSV to score the average"
        )
    return {
        **_details(work, merged),
        "adapter_outputs": fingerprint({}, (read_manifest(lora) or {})["outputs"]),
        "all_settings": work.settings.dump(),
        "conversion": {
            "method": work.method,
            "relative_distance": comparison.distance,
            "average_error": max(comparison.exact.frobenius, comparison.exact.largest_entry),
            "average_rank": work.settings.average_rank,
            "merge_error": gap,
            "merge_weight_error": weights.weight,
            "size_bytes": {
                "student": work.adapters[0].weights_file.stat().st_size,
                "avg_lora": (lora / ADAPTER_WEIGHTS).stat().st_size,
                "base": _weight_bytes(local_directory(work.base)),
                "merged": _weight_bytes(merged),
            },
        },
        "evaluation": evaluation,
    }


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("model*.safetensors"))
