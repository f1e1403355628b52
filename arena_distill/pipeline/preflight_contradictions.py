"""Settings that are each well, and contradict one another across stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.predict_settings import MERGED, QUANTIZED, PredictSettings
from arena_distill.pipeline.preflight_chain import Chain, steps
from arena_distill.pipeline.preflight_finding import Finding
from arena_distill.pipeline.preflight_settings import SETTINGS
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    INFER_TEACHER_LOGITS,
    INFER_TTA,
    LORA_ENSEMBLE,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
)
from arena_distill.training.distill_settings import DistillSettings, teacher_weights
from arena_distill.training.post_pretrain_settings import PostPretrainSettings
from arena_distill.training.teacher_settings import TeacherSettings


def contradictions(chain: Chain) -> Iterator[Finding]:
    """All of them; one line that says so if there are none."""
    found = False
    for check in (_bases, _label_words, _scored_teachers, _heard_teachers, _students, _average, _conversions):
        for finding in check(chain):
            found = True
            yield finding
    if not found:
        yield SETTINGS.ok("across stages", "no contradictions: bases, label words, teachers, students, models, folds")


def _bases(chain: Chain) -> Iterator[Finding]:
    """Step 3 starts from what step 1 leaves, family by family."""
    post, teachers = chain.of(PostPretrainSettings), chain.of(TeacherSettings)
    if post is None or teachers is None:
        return
    made = {str(plan.merged): plan.family for plan in post.plans if plan.merged} if chain.runs(POST_PRETRAIN) else {}
    used = {base for _, base in teachers.families.values()}
    if chain.runs(TRAIN_TEACHERS):
        for name, (setting, base) in teachers.families.items():
            family = setting.partition("_")[0].lower()
            if Path(base) != teachers.default_base(setting) or base in made or (Path(base) / "config.json").is_file():
                continue
            if not chain.runs(POST_PRETRAIN):
                said = f"teacher {name} starts from {base}, which is not there, and step 1 is not to run"
                advice = f"--from 1, a base of its own in {setting}, or SKIP_{family.upper()}=1"
            elif family not in post.run_stage.split(","):
                said = f"teacher {name} starts from step 1's {family} model, and RUN_STAGE={post.run_stage} makes none"
                advice = f"RUN_STAGE={post.run_stage},{family}, or SKIP_{family.upper()}=1, or a base in {setting}"
            else:
                said = f"teacher {name} starts from step 1's merged {family} model, and POSTPRE_MERGE=0 makes none"
                advice = f"leave POSTPRE_MERGE out, or give a base in {setting}"
            yield SETTINGS.fix(f"{setting}, RUN_STAGE", said, advice)
        for base, family in made.items():
            if base not in used:
                yield SETTINGS.warning(
                    "RUN_STAGE", f"step 1 post-pretrains {family}, and no teacher of step 3 starts from it",
                    f"leave {family} out of RUN_STAGE (now {post.run_stage}), or SKIP_{family.upper()}=0",
                )  # fmt: skip


def _label_words(chain: Chain) -> Iterator[Finding]:
    post, teachers = chain.of(PostPretrainSettings), chain.of(TeacherSettings)
    if post is None or teachers is None or not (chain.runs(POST_PRETRAIN) and chain.runs(TRAIN_TEACHERS)):
        return
    one, two = post.postpre_label_words, teachers.teacher_label_words
    if post.postpre_objective == "preference" and teachers.teacher_head == "label" and one != two:
        yield SETTINGS.fix(
            "POSTPRE_LABEL_WORDS", f"step 1 teaches the words {one}, and step 3 asks for {two} (TEACHER_LABEL_WORDS)",
            "give both the same words",
        )  # fmt: skip


def _known_teachers(chain: Chain) -> set[str]:
    """Names of the teachers that step 3 trains, or that are there."""
    teachers = chain.of(TeacherSettings)
    names = set(teachers.families) if teachers is not None and chain.runs(TRAIN_TEACHERS) else set()
    directory = chain.settings.model_save
    manifests = (path.parent.name for path in directory.glob("*_fold_*/manifest.json"))
    there = {name.rpartition("_fold_")[0] for name in manifests if not name.startswith((".", "distilled_"))}
    return names | there


def _scored_teachers(chain: Chain) -> Iterator[Finding]:
    oof = chain.of(OofSettings)
    if oof is None or not chain.runs(INFER_TEACHER_LOGITS):
        return
    known = _known_teachers(chain)
    if lost := [name for name in oof.wanted_models if name not in known]:
        yield SETTINGS.fix(
            "INFER_MODELS", f"names {', '.join(lost)}, and the teachers are {', '.join(sorted(known)) or 'none'}",
            "correct the name (LLAMA_NAME and the like give them), or train that teacher",
        )  # fmt: skip
    if chain.runs(DISTILL_STUDENT) and chain.settings.infer_train_shards > 1 and len(chain.folds) < oof.n_folds:
        yield SETTINGS.ok(
            "INFER_TRAIN_SHARDS", f"{chain.settings.infer_train_shards} parts of {len(chain.folds)} folds"
        )


def _heard_teachers(chain: Chain) -> Iterator[Finding]:
    student, oof = chain.of(DistillSettings), chain.of(OofSettings)
    if student is None or oof is None or not chain.runs(DISTILL_STUDENT) or not student.distills:
        return
    heard = teacher_weights(student.student_teachers)
    if not chain.runs(INFER_TEACHER_LOGITS):
        return  # what stands in the table, step 5 itself says within seconds
    scored = set(oof.wanted_models) or _known_teachers(chain)
    if lost := sorted(heard.keys() - scored):
        yield SETTINGS.fix(
            "STUDENT_TEACHERS", f"names {', '.join(lost)}, and step 4's table will hold {', '.join(sorted(scored))}",
            "name teachers that step 3 trains and step 4 scores (INFER_MODELS)",
        )  # fmt: skip
    elif heard and (unheard := sorted(scored - heard.keys())) and chain.runs(TRAIN_TEACHERS):
        yield SETTINGS.warning(
            "STUDENT_TEACHERS", f"no student listens to {', '.join(unheard)}",
            "name it too, or save its training (SKIP_…=1)",
        )  # fmt: skip


def _students(chain: Chain) -> Iterator[Finding]:
    """Step 6 averages what step 5 leaves."""
    student, average = chain.of(DistillSettings), chain.of(AverageSettings)
    if student is None or average is None or not chain.runs(LORA_ENSEMBLE):
        return
    if not chain.runs(DISTILL_STUDENT):
        return
    if not student.student_lora_r:
        yield SETTINGS.fix(
            "STUDENT_LORA_R", "0 trains every weight, and step 6 averages LoRA students",
            "STUDENT_LORA_R=64; or --skip 6,7,8 and ensemble the folds' predictions in step 9",
        )  # fmt: skip
    trained = {fold: student.student_dir(fold) for fold in chain.folds}
    for fold in average.fold_numbers:
        wanted = average.student_dir(fold)
        if fold in trained and trained[fold].resolve() != wanted.resolve():
            yield SETTINGS.fix(
                "LORA_DIR_PREFIX", f"step 6 averages {wanted}, and step 5 writes {trained[fold]}",
                "leave LORA_DIR_PREFIX and STUDENT_OUTDIR out, or let both name the same place",
            )  # fmt: skip
            break


def _average(chain: Chain) -> Iterator[Finding]:
    student, average = chain.of(DistillSettings), chain.of(AverageSettings)
    if average is None or not chain.runs(LORA_ENSEMBLE):
        return
    lost = [fold for fold in average.fold_numbers if not (average.student_dir(fold) / "manifest.json").is_file()]
    if chain.runs(DISTILL_STUDENT):
        if missing := [fold for fold in lost if fold not in chain.folds]:
            yield SETTINGS.fix(
                "--folds, FOLDS", f"step 6 averages the students of {_folds(average.fold_numbers)}, and "
                f"{_folds(missing)} will not be there",
                f"FOLDS={','.join(map(str, chain.folds))} averages these alone; or leave --folds out",
            )  # fmt: skip
        if left_out := [fold for fold in chain.folds if fold not in average.fold_numbers]:
            yield SETTINGS.warning(
                "FOLDS", f"step 5 trains the students of {_folds(left_out)}, which step 6 leaves out of the average",
                "leave FOLDS out, or give --folds the same numbers",
            )  # fmt: skip
    if student is not None and average.base_model and average.base_model != student.student_model_name:
        yield SETTINGS.fix(
            "BASE_MODEL", f"step 6 merges into {average.base_model}, and the students are trained on "
            f"{student.student_model_name} (STUDENT_MODEL_NAME)", "leave BASE_MODEL out",
        )  # fmt: skip


def _conversions(chain: Chain) -> Iterator[Finding]:
    """Steps 6, 7 and 8 hand a model on, by directories that settings may change."""
    average, quantize, predict = chain.of(AverageSettings), chain.of(QuantizeSettings), chain.of(PredictSettings)
    if average is None or quantize is None or predict is None:
        return
    reads = quantize.model_path
    if chain.runs(LORA_ENSEMBLE) and chain.runs(QUANTIZE) and reads.resolve() != average.merged_dir.resolve():
        name = "MODEL_DIR" if quantize.model_dir else "OUT_MERGED"
        yield SETTINGS.fix(
            name, f"step 6 writes {average.merged_dir}, and step 7 quantizes {reads}", f"leave {name} out",
        )  # fmt: skip
    if chain.runs(QUANTIZE) and chain.runs(INFER_TTA):
        if quantize.model_dir:
            yield SETTINGS.warning(
                "MODEL_DIR", f"steers {steps([QUANTIZE.number, INFER_TTA.number])} alike: step 8 would predict with "
                f"{quantize.model_dir} as it is, and not with what step 7 makes of it",
                "leave it out; or quantize first (--from 7 --to 7), then predict without it (--from 8)",
            )  # fmt: skip
        elif quantize.out_path.resolve() != (predict.model_save / QUANTIZED).resolve():
            yield SETTINGS.fix(
                "OUT_DIR", f"step 7 writes {quantize.out_path}, and step 8 looks for {predict.model_save / QUANTIZED}, "
                f"or else takes {MERGED}, which is not quantized", "leave OUT_DIR out",
            )  # fmt: skip
    if chain.runs(LORA_ENSEMBLE) and chain.runs(INFER_TTA) and not chain.runs(QUANTIZE):
        if (predict.model_save / QUANTIZED).is_dir() and not predict.model_dir:
            yield SETTINGS.warning(
                QUANTIZED, "step 8 prefers the quantized model that is there from before to what step 6 makes now",
                f"run step 7 too, or MODEL_DIR={average.merged_dir}",
            )  # fmt: skip
        if not predict.model_dir and average.merged_dir.resolve() != (predict.model_save / MERGED).resolve():
            yield SETTINGS.fix(
                "OUT_MERGED", f"step 6 writes {average.merged_dir}, and step 8 looks for {predict.model_save / MERGED}",
                f"leave OUT_MERGED out, or MODEL_DIR={average.merged_dir}",
            )  # fmt: skip


def _folds(numbers: list[int]) -> str:
    return f"fold{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
