"""The paths of the table of stages, as they are for one run: its folds, its teachers' names, its directories."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.evaluation.evaluation_settings import EvaluationSettings
from arena_distill.inference.oof_settings import OofTableSettings
from arena_distill.inference.predict_settings import PredictSettings
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.report.report_settings import ReportSettings
from arena_distill.runtime.settings import StageSettings, parse_settings
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.post_pretrain_settings import PostPretrainSettings
from arena_distill.training.teacher_settings import TeacherSettings

Settings = TypeVar("Settings", bound=StageSettings)


def run_paths(settings: PipelineSettings) -> dict[str, list[str]]:
    """For every path of the table what it stands for; several folds or names in braces, as a shell has them.

    Raises:
        SettingsError: a stage's settings are not valid.
    """
    post, folds, teachers = _told(PostPretrainSettings), _told(FoldSettings), _told(TeacherSettings)
    oof, distill, average = _told(OofTableSettings), _told(DistillSettings), _told(AverageSettings)
    quantize, predict = _told(QuantizeSettings), _told(PredictSettings)
    evaluation, report = _told(EvaluationSettings), _told(ReportSettings)

    fold = _braced(settings.fold_numbers)
    names = _braced(teachers.families)
    families = _braced(post.run_stage.split(","))
    save = settings.model_save
    students = str(distill.student_dir(0)).removesuffix("_fold_0")
    submission = predict.submission
    return {
        "data/ultrafeedback.csv": [str(path) for path in post.data_paths],
        "data/train.csv": [folds.train_csv or "data/[lmsys-chatbot-arena/]train.csv"],
        "data/test.csv": [predict.test_csv or "data/[lmsys-chatbot-arena/]test.csv"],
        "EXTRA_DATA": [str(path) for path in folds.extra_paths],
        "CALIB_CSV": [quantize.calib_csv or quantize.train_csv or "data/[lmsys-chatbot-arena/]train.csv"],
        "data/processed_data/folds_5_seed42.json": [str(folds.folds_path)],
        "data/fold_data/fold_K_{train,val}.csv": [f"{folds.fold_data}/fold_{fold}_{{train,val}}.csv"],
        "model_save/post_pretrain_*": [base for _, base in teachers.families.values()],
        "model_save/post_pretrain_{llama,qwen,gemma}_lora": [f"{save}/post_pretrain_{families}_lora"],
        "model_save/post_pretrain_{llama,qwen,gemma}": [f"{save}/post_pretrain_{families}"] * post.postpre_merge,
        "model_save/NAME_fold_K_lora": [f"{save}/{names}_fold_{fold}_lora"],
        "model_save/NAME_fold_K": [f"{save}/{names}_fold_{fold}"],
        "model_save/NAME_fold_K[_lora]": [f"{save}/{names}_fold_{fold}[_lora]"],
        "model_save/teacher_logits/NAME_fold_K/teacher_{logits,probs}_fold_K.npy": [
            f"{oof.logits_dir}/{names}_fold_{fold}/teacher_{{logits,probs}}_fold_{fold}.npy"
        ],
        "model_save/teacher_logits/oof_probs.parquet": [str(oof.table_path)],
        "model_save/distilled_gemma2-9b_fold_K": [f"{students}_fold_{fold}"],
        "model_save/avg_lora": [str(average.lora_dir)],
        "model_save/final_merged_model": [str(average.merged_dir)],
        "model_save/final_quantized_model": [str(quantize.out_path)],
        "sub/RUN_student_submission_fold_K.csv": [str(evaluation.in_sub(f"student_submission_fold_{fold}.csv"))],
        "sub/RUN_final_submission.csv": [str(submission)],
        "sub/RUN_final_submission.logits.parquet": [str(submission.with_suffix(".logits.parquet"))],
        "sub/RUN_final_ensemble.csv": [str(evaluation.in_sub("final_ensemble.csv"))],
        "sub/RUN_evaluation.json": [str(evaluation.out_file)],
        "model_save/RUN/report.html": [str(report.page)],
    }


def _told(cls: type[Settings]) -> Settings:
    return parse_settings(cls, [], program="pipeline.sh", description="")


def _braced(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    return texts[0] if len(texts) == 1 else f"{{{','.join(texts)}}}"
