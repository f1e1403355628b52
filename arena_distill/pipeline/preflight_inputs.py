"""What stages that will run need of those that will not: outputs of earlier commands; and which are done already."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.quantize_job import VOCABULARIES
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.conversion.students import read_students
from arena_distill.data.fold_files import fold_csv
from arena_distill.evaluation.evaluation_settings import EvaluationSettings
from arena_distill.inference.oof_job import plan_oof
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.predict_job import finished_student
from arena_distill.inference.predict_settings import PredictSettings
from arena_distill.models.quantized import is_quantized
from arena_distill.pipeline.completeness import incomplete, members
from arena_distill.pipeline.preflight_chain import Chain, steps
from arena_distill.pipeline.preflight_finding import Finding, Topic, guarded
from arena_distill.pipeline.preflight_models import Model, Use, predicted_lengths, read_config, too_long
from arena_distill.pipeline.variables import own
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.settings import PROFILE_VARIABLE
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    EVAL,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    QUANTIZE,
    STAGES,
    TRAIN_TEACHERS,
    Stage,
)
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.post_pretrain_settings import PostPretrainSettings

INPUTS = Topic("earlier steps")


def finished_stages(chain: Chain) -> frozenset[int]:
    """Numbers of the stages to run that have nothing left to do. Only those that left something are asked."""
    if chain.plan is None or chain.settings.force:
        return frozenset()
    environment = own(chain.variables)
    if chain.profile:
        environment[PROFILE_VARIABLE] = chain.profile
    done: set[int] = set()
    for plan in chain.plan.stages:
        if any(STAGES[before.stage].number not in done for before in plan.depends):
            continue  # what is made anew before it will change it
        begun = any(place.exists() for place in _outputs(chain, plan.stage))
        if begun and not incomplete(plan.stage.name, list(plan.tasks), environment):
            done.add(plan.stage.number)
    return frozenset(done)


def _outputs(chain: Chain, stage: Stage) -> list[Path]:
    """One path that would be there if a stage had begun to leave anything."""
    save, fold = chain.settings.model_save, chain.folds[0]
    post, distill = chain.of(PostPretrainSettings), chain.of(DistillSettings)
    average, quantize, predict = chain.of(AverageSettings), chain.of(QuantizeSettings), chain.of(PredictSettings)
    evaluation, oof = chain.of(EvaluationSettings), chain.of(OofSettings)
    manifest = "manifest.json"
    places: dict[int, list[Path]] = {
        1: [plan.adapter / manifest for plan in post.plans] if post else [],
        2: [chain.settings.output_dir / "data"],
        3: list(save.glob(f"*_fold_{fold}*/{manifest}")),
        4: [oof.logits_dir] if oof else [],
        5: [distill.student_dir(fold) / manifest] if distill else [],
        6: [average.merged_dir / manifest] if average else [],
        7: [quantize.out_path / manifest] if quantize else [],
        8: [predict.submission] if predict else [],
        9: [evaluation.in_sub("final_ensemble.csv")] if evaluation else [],
    }
    return places[stage.number]


def check_inputs(chain: Chain, done: frozenset[int]) -> Iterator[Finding]:
    """Every stage whose input no stage to run will make."""
    for stage, before, check in (
        (INFER_TEACHER_LOGITS, TRAIN_TEACHERS, _teachers),
        (DISTILL_STUDENT, MAKE_FOLDS, _fold_files),
        (DISTILL_STUDENT, INFER_TEACHER_LOGITS, _table),
        (LORA_ENSEMBLE, DISTILL_STUDENT, _students),
        (QUANTIZE, LORA_ENSEMBLE, _merged),
        (INFER_TTA, QUANTIZE, _student),
        (EVAL, INFER_TTA, _submissions),
    ):
        if chain.runs(stage) and not chain.runs(before):
            subject = f"step {stage.number}'s input"
            yield from guarded(INPUTS, subject, partial(check, chain, subject))
    if chain.runs(EVAL) and chain.runs(INFER_TTA):
        yield from guarded(INPUTS, "step 9's input", partial(_other_submissions, chain))
    if done:
        yield INPUTS.ok(steps(sorted(done)), "up to date: nothing to be done (FORCE=1 does it again)")


def _teachers(chain: Chain, subject: str) -> Iterator[Finding]:
    settings = chain.of(OofSettings)
    if settings is None:
        return
    if not settings.folds_path.is_file():
        return  # said with the data
    wanted = settings.model_copy(update={"infer_folds": ",".join(map(str, chain.folds))})
    plan = plan_oof(wanted)
    yield INPUTS.ok(subject, f"teachers {', '.join(plan.families)}, each of its own folds")


def _fold_files(chain: Chain, subject: str) -> Iterator[Finding]:
    settings = chain.of(DistillSettings)
    if settings is None:
        return
    files = [fold_csv(settings.fold_data, fold, part) for fold in chain.folds for part in ("train", "val")]
    if lost := [file for file in files if not file.is_file()]:
        yield INPUTS.fix(subject, f"{lost[0]}: no such fold file", "--from 2, or name them in FOLDS_OUT_DIR")
    else:
        yield INPUTS.ok(subject, f"{len(files)} fold files in {settings.fold_data}")


def _table(chain: Chain, subject: str) -> Iterator[Finding]:
    settings = chain.of(DistillSettings)
    if settings is None or not settings.distills:
        return
    if settings.table_path.is_file():
        yield INPUTS.ok(subject, f"{settings.table_path} is there")
    else:
        yield INPUTS.fix(
            subject, f"{settings.table_path}: no out-of-fold table",
            "--from 4, name it in INFER_OOF_TABLE, or STUDENT_ALPHA=0 (votes alone)",
        )  # fmt: skip


def _students(chain: Chain, subject: str) -> Iterator[Finding]:
    settings = chain.of(AverageSettings)
    if settings is not None:
        students = read_students(settings.student_dir, settings.fold_numbers, settings.n_folds)
        yield INPUTS.ok(subject, f"{len(students)} students, {students[0].directory} and on, whole and alike")


def _merged(chain: Chain, subject: str) -> Iterator[Finding]:
    settings = chain.of(QuantizeSettings)
    if settings is None:
        return
    model = settings.model_path
    if is_quantized(model):
        raise InputError(f"{model}: is quantized already -> name the model that it was made from in MODEL_DIR")
    _require_student(model)
    if not any(file for pattern in VOCABULARIES for file in settings.tokenizer_path.glob(pattern)):
        raise InputError(f"{settings.tokenizer_path}: holds no tokenizer -> give the directory of one in TOKENIZER_DIR")
    yield INPUTS.ok(subject, f"{model} is whole")


def _student(chain: Chain, subject: str) -> Iterator[Finding]:
    settings = chain.of(PredictSettings)
    if settings is None or (chain.runs(LORA_ENSEMBLE) and not settings.model_dir):
        return
    model = settings.model
    _require_student(model)
    yield INPUTS.ok(subject, f"{model} is whole")
    if (model / "config.json").is_file():
        known = Model(str(model), config=read_config(model))
        yield from too_long(known, Use(INFER_TTA.number, "MODEL_DIR", lengths=predicted_lengths(chain)))


def _require_student(model: Path) -> None:
    if not model.is_dir():
        raise InputError(f"{model}: no such directory -> start at an earlier step, or name a student in MODEL_DIR")
    finished_student(model)


def _submissions(chain: Chain, subject: str) -> Iterator[Finding]:
    settings = chain.of(EvaluationSettings)
    if settings is None:
        return
    if files := members(settings):
        yield INPUTS.ok(subject, f"{len(files)} submission{'s' * (len(files) > 1)}: {files[0]}")
    else:
        raise InputError(f"{settings.in_sub('final_submission.csv')}: no submission there -> --from 8")


def _other_submissions(chain: Chain) -> Iterator[Finding]:
    settings = chain.of(EvaluationSettings)
    if settings is None:
        return
    others = [file for file in members(settings) if "_fold_" in file.name]
    if others:
        yield INPUTS.warning(
            "step 9's input", f"{others[0]} and {len(others) - 1} more are there: step 9 takes the folds' submissions, "
            "and not the one that step 8 makes", "move them away, or choose another RUN",
        )  # fmt: skip
