"""What step 6 is to make, and whether it is there already. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.students import FoldStudent, read_students, require_base_of, same_start
from arena_distill.data.find_file import find_file
from arena_distill.evaluation.eval_rows import NONE, eval_files
from arena_distill.models.backbone import check_backbone
from arena_distill.runtime.artifacts import recover, require_replaceable
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.job import Job
from arena_distill.runtime.stages import LORA_ENSEMBLE

STAGE = LORA_ENSEMBLE.name


@dataclass(frozen=True)
class AveragePlan:
    """Two outputs: the averaged adapter, and the model that it makes of the base."""

    students: list[FoldStudent]
    lora: Job
    merged: Job
    test_file: Path | None
    labelled: bool  # the test rows' votes are known
    details: dict[str, Any]  # of both manifests

    @property
    def folds(self) -> list[int]:
        """Numbers of the folds."""
        return [student.fold for student in self.students]

    @property
    def max_length(self) -> int:
        """Tokens that all students were trained at."""
        return self.students[0].max_length


def plan_average(settings: AverageSettings) -> AveragePlan:
    """Everything that is to be made, after a look at all inputs.

    Raises:
        InputError: an input is missing or does not belong to the others, or an output would replace what is not ours.
        SettingsError: the settings contradict each other, or the students.
    """
    students = read_students(settings.student_dir, settings.fold_numbers, settings.n_folds)
    if settings.base_model:
        require_base_of(students, check_backbone(settings.base_model, "BASE_MODEL"))
    if settings.average_method == "mean" and not same_start(students):
        raise SettingsError(
            "AVERAGE_METHOD=mean: the students started from different factors (initial_sha256 in their manifests), "
            "whose means have no meaning -> use exact, or train all folds with one STUDENT_SEED"
        )
    lora, merged = settings.lora_dir, settings.merged_dir
    _refuse_overlap(settings, students)
    for output in (lora, merged):
        recover(output)
        require_replaceable(output, STAGE)
    files = _eval_files(settings)
    _refuse_seen(settings, files, students)
    inputs = {
        "base_model": str(students[0].manifest["inputs"]["student_model"]),
        "train_csv": str(students[0].manifest["inputs"]["train_csv"]),
        "folds_json": str(students[0].manifest["inputs"]["folds_json"]),
        **{f"fold_{student.fold}": student.identity for student in students},
    }
    decisive = {
        "folds": [student.fold for student in students],
        "n_folds": settings.n_folds,
        "average_method": settings.average_method,
        "average_rank": settings.average_rank,
    }
    of_merged = {name: settings.dump()[name] for name in ("merged_dtype", "average_eval_rows", "average_bf16", "seed")}
    teachers = [student.manifest.get("teachers") for student in students]
    heard = {name: weight for some in teachers for name, weight in (some or {}).items()}
    return AveragePlan(
        students,
        Job(settings=decisive, inputs=inputs, final=lora),
        Job(settings=decisive | of_merged, inputs=inputs | files, final=merged),
        test_file=settings.test_file if files else None,
        labelled="labels_csv" in files,
        details={
            "max_length": students[0].max_length,
            "n_folds": settings.n_folds,
            "folds": [student.fold for student in students],
            "teachers": heard or None,
            "second_order_leak": any(teachers),
        },
    )


def _refuse_overlap(settings: AverageSettings, students: list[FoldStudent]) -> None:
    lora, merged = settings.lora_dir, settings.merged_dir
    sources = [student.directory for student in students]
    bases = {str(student.manifest.get("base_model") or "") for student in students} | {settings.base_model}
    sources += [Path(base) for base in sorted(bases) if base and Path(base).is_dir()]
    for name, output, others in (("OUT_LORA", lora, sources), ("OUT_MERGED", merged, [*sources, lora])):
        for other in others:
            one, two = output.resolve(), other.resolve()
            if one.is_relative_to(two) or two.is_relative_to(one):
                raise InputError(
                    f"{name}={output}: is or lies in {other}, or the other way round, which it is made from -> choose "
                    "another place"
                )


def _eval_files(settings: AverageSettings) -> dict[str, str]:
    """Hashes of the files to score on; without a test file none, for there may be none."""
    if settings.test_csv:
        return eval_files(settings)
    try:
        find_file("", "test", "TEST_CSV")
    except InputError as error:
        for name in ("labels_csv", "truth_parquet"):
            if getattr(settings, name) not in ("", NONE):
                raise InputError(f"{name.upper()}: given without a test file -> give TEST_CSV too") from error
        return {}
    return eval_files(settings)


def _refuse_seen(settings: AverageSettings, files: dict[str, str], students: list[FoldStudent]) -> None:
    for student in students:
        for name in ("train_csv", "fold_train_csv", "fold_val_csv"):
            if files and files["test_csv"] == student.manifest["inputs"].get(name):
                raise InputError(
                    f"TEST_CSV={settings.test_file}: is the {name} of {student.directory}, rows that students were "
                    "trained on -> give a file that none of them has seen, or put none there"
                )
