"""Which tasks of a stage are done, to the same standard as the stage itself holds when it says "up to date".

Settings and the hashes of inputs decide, by the stages' own plans. FORCE, STUDENT_OVERWRITE and INFER_FORCE_REGEN are
not heeded: what is there with equal settings and inputs is done. A plan that cannot be made, as an input is missing or
a setting does not fit any more, is of nothing that is done.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from arena_distill.pipeline.artifact_states import report_is_current
from arena_distill.pipeline.run_environment import only, settings_of
from arena_distill.pipeline.variables import settled
from arena_distill.runtime.artifacts import fingerprint, is_up_to_date, read_manifest, read_manifest_file, sha256_file
from arena_distill.runtime.errors import ArenaError
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    EVAL,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    STAGES,
    TRAIN_TEACHERS,
    FanOut,
)

if TYPE_CHECKING:
    from arena_distill.evaluation.evaluation_settings import EvaluationSettings

Environment = Mapping[str, str]
Task = int | None

TINY = "tiny"


def is_complete(stage: str, task: Task, environment: Environment) -> bool:
    """Whether one task has nothing left to do; see ``incomplete``, which is quicker for several."""
    return not incomplete(stage, [task], environment)


def incomplete(
    stage: str, tasks: Sequence[Task], environment: Environment, *, array: FanOut | None = None
) -> list[Task]:
    """Tasks that have something left to do.

    Args:
        stage: its name.
        tasks: of its array, or ``[None]`` for a job that is none.
        environment: settings of ours as the stage would see them, from the environment and the profile (a profile that
            PROFILE names is read as well). Of this process's environment only what is no setting of ours counts.
        array: what a task takes; by default a fold, and of step 4 a shard where INFER_TRAIN_SHARDS says so.

    Returns:
        Those of ``tasks``, in their order. Of step 4, when all logits are there and the table is not, the last one.
    """
    left = [task for task in tasks if not _is_done(_CHECKS[stage], _of_task(stage, task, environment, array))]
    if stage == INFER_TEACHER_LOGITS.name and not left and tasks:
        last = _of_task(stage, tasks[-1], environment, array)
        return [] if _is_done(_has_table, last) else [tasks[-1]]
    return left


def _of_task(stage: str, task: Task, environment: Environment, array: FanOut | None) -> dict[str, str]:
    if task is None:
        return dict(environment)
    sharded = array == "shard" if array else stage == INFER_TEACHER_LOGITS.name and is_sharded(environment)
    return dict(environment) | {"INFER_TRAIN_SHARD_ID" if sharded else STAGES[stage].folds_variable: str(task)}


def is_sharded(environment: Environment) -> bool:
    """Whether the tasks of step 4 are shards of all folds' work, and not folds."""
    with only(environment):
        shards = settled().get("INFER_TRAIN_SHARDS", "1")
    return shards.isdecimal() and int(shards) > 1


def _is_done(check: Callable[[Environment], bool], environment: Environment) -> bool:
    try:
        with only(environment), redirect_stdout(io.StringIO()):  # plans print notes for those who run them
            return check(environment)
    except (ArenaError, OSError, LookupError, TypeError, ValueError, AttributeError):  # manifests may be edited
        return False


def _post_pretrained(environment: Environment) -> bool:
    from arena_distill.models.architecture import LADDERS
    from arena_distill.training.post_pretrain_job import PostPretrainJob, plan_post_pretraining
    from arena_distill.training.post_pretrain_settings import FamilyPlan, PostPretrainSettings

    settings = settings_of(PostPretrainSettings, environment)

    def finished(plan: FamilyPlan) -> PostPretrainJob | None:
        bases = [plan.base]
        if settings.auto_downgrade:  # which of them it was, the memory of the machine that trained has decided
            bases += settings.ladder(plan.family) or LADDERS.get(plan.family, ())
        for base in bases:
            try:
                job = plan_post_pretraining(settings, plan, base)
            except ArenaError:  # a base of the ladder need not be here
                continue
            if job.is_up_to_date():
                return job
        return None

    for plan in settings.plans:
        job = finished(plan)
        if job is None or (plan.merged is not None and not _is_merged_of(plan.merged, job.final, POST_PRETRAIN.name)):
            return False
    return environment.get("PROFILE") != TINY or _tiny_models_are_there()


def _is_merged_of(merged: Path, adapter: Path, key: str = "") -> bool:
    """Whether a whole merged copy of this very adapter is there, as its manifest says under ``verified``."""
    copy, source = read_manifest(merged), read_manifest(adapter)
    if copy is None or source is None:
        return False
    verified = copy.get("verified") or {}
    made_of = verified.get(key) or {} if key else verified
    same = made_of.get("adapter_outputs") == fingerprint({}, source["outputs"])
    return same and is_up_to_date(merged, copy["fingerprint"])


def _tiny_models_are_there() -> bool:
    """Bases that step 1's script makes for the tiny profile, and that steps 1, 3 and 5 start from."""
    from arena_distill.runtime.settings import profile_entries

    families = profile_entries(TINY).get("TINY_FAMILIES", "").split(",")
    return all((Path("model_save/tiny") / family / "config.json").is_file() for family in families if family)


def _folds_are_made(environment: Environment) -> bool:
    from arena_distill.data.fold_settings import FoldSettings
    from arena_distill.data.fold_stage import FoldStage

    return FoldStage.plan(settings_of(FoldSettings, environment)).is_up_to_date()


def _teachers_are_trained(environment: Environment) -> bool:
    from arena_distill.training.teacher_job import plan_teachers
    from arena_distill.training.teacher_settings import TeacherSettings

    settings = settings_of(TeacherSettings, environment)
    jobs = plan_teachers(settings)
    if not all(job.is_up_to_date() for job in jobs):
        return False
    adapters = [job for job in jobs if job.merged is not None]
    waiting = [job for job in adapters if job.merged is not None and not _is_merged_of(job.merged, job.final)]
    if not waiting or settings.teacher_merge == "0":
        return True
    from arena_distill.training.teacher_merge import wants_merged  # imports torch: only where the answer hangs on it

    return not wants_merged(settings, adapters)[0]


def _logits_are_there(environment: Environment) -> bool:
    from arena_distill.inference.oof_job import plan_oof
    from arena_distill.inference.oof_settings import OofSettings

    return all(job.is_up_to_date() for job in plan_oof(settings_of(OofSettings, environment)).jobs)


def _has_table(environment: Environment) -> bool:
    """Whether the table is of the logits that are there. It waits while folds that nobody asked for are missing."""
    from arena_distill.data.folds import load_folds
    from arena_distill.inference.oof_job import plan_oof
    from arena_distill.inference.oof_settings import OofSettings
    from arena_distill.inference.oof_table import manifest_path

    settings = settings_of(OofSettings, environment)
    plan = plan_oof(settings)
    inputs = dict(plan.inputs)
    for name in plan.families:
        for fold in range(load_folds(settings.folds_path).n_folds):
            manifest = read_manifest(settings.logits_dir / f"{name}_fold_{fold}")
            if manifest is None:
                return True
            inputs[f"{name}_fold_{fold}"] = fingerprint({}, manifest["outputs"])
    table = settings.table_path
    recorded = read_manifest_file(manifest_path(table))
    if recorded is None or "metrics" not in recorded or not table.is_file():
        return False
    same = all(recorded["inputs"].get(name) == digest for name, digest in inputs.items())
    return same and recorded["outputs"].get(table.name) == sha256_file(table)


def _students_are_trained(environment: Environment) -> bool:
    from arena_distill.training.distill_job import plan_students
    from arena_distill.training.distill_settings import DistillSettings

    return all(job.is_up_to_date() for job in plan_students(settings_of(DistillSettings, environment)))


def _students_are_averaged(environment: Environment) -> bool:
    from arena_distill.conversion.average_job import plan_average
    from arena_distill.conversion.average_settings import AverageSettings

    plan = plan_average(settings_of(AverageSettings, environment))
    return plan.lora.is_up_to_date() and plan.merged.is_up_to_date()


def _is_quantized(environment: Environment) -> bool:
    from arena_distill.conversion.quantize_job import plan_quantization
    from arena_distill.conversion.quantize_settings import QuantizeSettings

    return plan_quantization(settings_of(QuantizeSettings, environment)).is_up_to_date()


def _is_predicted(environment: Environment) -> bool:
    from arena_distill.inference.predict_job import plan_prediction
    from arena_distill.inference.predict_settings import PredictSettings

    return plan_prediction(settings_of(PredictSettings, as_step_8_asks(environment))).is_up_to_date()


def as_step_8_asks(environment: Environment) -> dict[str, str]:
    """What ``step8_infer_tta.sh`` makes of HEAD_DIR, HEAD_OUT and CALIB_JSON before it calls its worker."""
    from arena_distill.inference.predict_settings import MERGED, PredictSettings

    with only(environment):
        said = settled()
    own = {name: said[name] for name in ("HEAD_DIR", "MODEL_DIR") if said.get(name)}
    merged = settings_of(PredictSettings, environment).model_save / MERGED
    head_dir = Path(own.get("HEAD_DIR") or own.get("MODEL_DIR") or merged)
    asked = dict(environment)
    if head_dir.is_dir() or "HEAD_DIR" in own:
        asked["HEAD_PATH"] = said.get("HEAD_OUT") or str(head_dir / "classifier_head.pt")
    if said.get("CALIB_JSON"):
        asked["TEMPERATURE_JSON"] = said["CALIB_JSON"]
    return asked


def _is_evaluated(environment: Environment) -> bool:
    """Whether ensemble, evaluation and report are there, each made of what is there now."""
    from arena_distill.evaluation.evaluation_file import changed_files, read_evaluation
    from arena_distill.evaluation.evaluation_settings import EvaluationSettings
    from arena_distill.report.report_settings import ReportSettings

    evaluation = settings_of(EvaluationSettings, environment)
    report = settings_of(ReportSettings, environment)
    ensemble = evaluation.in_sub("final_ensemble.csv")
    if not _ensemble_is_of(ensemble, members(evaluation)):
        return False
    if _has_votes(evaluation):
        document = read_evaluation(evaluation.out_file)
        if document is None or changed_files(document, evaluation.output_dir):
            return False
    return report.page.is_file() and report_is_current(report)


def members(settings: EvaluationSettings) -> list[Path]:
    """The submissions that step 9 makes into one: the folds', or where there are none the last of the others."""
    prefix = settings.in_sub("student_submission").name
    folds = sorted((settings.output_dir / "sub").glob(f"{prefix}_fold_*.csv"))
    single = [settings.in_sub(f"{name}.csv") for name in ("student_submission", "final_submission")]
    return folds or [path for path in single if path.is_file()][-1:]


def _ensemble_is_of(ensemble: Path, expected: Sequence[Path]) -> bool:
    manifest = read_manifest_file(ensemble.with_suffix(".manifest.json"))
    if manifest is None or not expected or not ensemble.is_file():
        return False
    recorded = {Path(name).resolve(): digest for name, digest in manifest["inputs"].items()}
    whole = manifest["outputs"].get(ensemble.name) == sha256_file(ensemble)
    named = {path.resolve() for path in expected} == {Path(one["file"]).resolve() for one in manifest["members"]}
    return whole and named and all(path.is_file() and sha256_file(path) == had for path, had in recorded.items())


def _has_votes(settings: EvaluationSettings) -> bool:
    try:
        return settings.labels_file is not None
    except ArenaError:
        return False


_CHECKS: dict[str, Callable[[Environment], bool]] = {
    POST_PRETRAIN.name: _post_pretrained,
    MAKE_FOLDS.name: _folds_are_made,
    TRAIN_TEACHERS.name: _teachers_are_trained,
    INFER_TEACHER_LOGITS.name: _logits_are_there,
    DISTILL_STUDENT.name: _students_are_trained,
    LORA_ENSEMBLE.name: _students_are_averaged,
    QUANTIZE.name: _is_quantized,
    INFER_TTA.name: _is_predicted,
    EVAL.name: _is_evaluated,
}
