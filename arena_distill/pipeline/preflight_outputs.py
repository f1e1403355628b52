"""Places of the outputs: free, or holding what their stage may replace. Found out now, and not after the training."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.models.merge import STAGE as MERGE
from arena_distill.pipeline.preflight_chain import Chain
from arena_distill.pipeline.preflight_finding import Finding, Topic, guarded
from arena_distill.runtime.artifacts import require_replaceable
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    INFER_TEACHER_LOGITS,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
)
from arena_distill.training.distill_job import plan_students
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.post_pretrain_settings import PostPretrainSettings
from arena_distill.training.teacher_settings import TeacherSettings

OUTPUTS = Topic("outputs")


def check_outputs(chain: Chain, done: frozenset[int]) -> Iterator[Finding]:
    """Every directory that a stage will put in place as a whole."""
    taken = False
    for number, directory, stage in _directories(chain):
        if number not in done:
            try:
                require_replaceable(directory, stage)
            except InputError as error:
                taken = True
                yield OUTPUTS.of_error(f"step {number}", error)
    if not taken:
        yield OUTPUTS.ok("directories", "free, or holding what these stages made before and may replace")
    if chain.runs(DISTILL_STUDENT) and DISTILL_STUDENT.number not in done:
        yield from guarded(OUTPUTS, "step 5", lambda: _finished_students(chain, done))


def _directories(chain: Chain) -> Iterator[tuple[int, Path, str]]:
    """Step, directory, and the stage whose manifest it may hold."""
    post, teachers, student = chain.of(PostPretrainSettings), chain.of(TeacherSettings), chain.of(DistillSettings)
    folds, average, quantize = chain.of(FoldSettings), chain.of(AverageSettings), chain.of(QuantizeSettings)
    if post is not None and chain.runs(POST_PRETRAIN):
        for plan in post.plans:
            yield 1, plan.adapter, POST_PRETRAIN.name
            if plan.merged is not None:
                yield 1, plan.merged, MERGE
    if folds is not None and chain.runs(MAKE_FOLDS):
        yield 2, folds.fold_data, MAKE_FOLDS.name
    if teachers is not None and chain.runs(TRAIN_TEACHERS):
        for name in teachers.families:
            own = teachers.of_family(name)
            for fold in chain.folds:
                adapter, merged = own.adapter_dir(name, fold), own.merged_dir(name, fold)
                yield 3, adapter if own.teacher_lora_r else merged, TRAIN_TEACHERS.name
                if own.teacher_lora_r and own.teacher_merge != "0":
                    yield 3, merged, MERGE
    if student is not None and chain.runs(DISTILL_STUDENT):
        for fold in chain.folds:
            yield 5, student.student_dir(fold), DISTILL_STUDENT.name
    if average is not None and chain.runs(LORA_ENSEMBLE):
        yield 6, average.lora_dir, LORA_ENSEMBLE.name
        yield 6, average.merged_dir, LORA_ENSEMBLE.name
    if quantize is not None and chain.runs(QUANTIZE):
        yield 7, quantize.out_path, QUANTIZE.name


def _finished_students(chain: Chain, done: frozenset[int]) -> Iterator[Finding]:
    """Step 5 replaces no finished student that was made otherwise unless it is told to."""
    settings = chain.of(DistillSettings)
    if settings is None or settings.student_overwrite or settings.force:
        return
    there = [settings.student_dir(fold) for fold in chain.folds]
    there = [directory for directory in there if (directory / "manifest.json").is_file()]
    if not there:
        return
    earlier = (POST_PRETRAIN, MAKE_FOLDS, TRAIN_TEACHERS, INFER_TEACHER_LOGITS)
    if any(chain.runs(stage) and stage.number not in done for stage in earlier):
        yield OUTPUTS.warning(
            "step 5", f"{there[0]}: a finished student; if the steps before give other labels, step 5 stops there",
            "STUDENT_OVERWRITE=1 replaces it; another RUN, STUDENT_NAME or STUDENT_OUTDIR keeps it",
        )  # fmt: skip
        return
    wanted = settings.model_copy(update={"student_folds": ",".join(map(str, chain.folds))})
    try:
        with redirect_stdout(io.StringIO()):
            plan_students(wanted)
    except SettingsError as error:
        yield OUTPUTS.of_error("step 5", error)
    except InputError:
        return  # said with the data and with what earlier steps left
