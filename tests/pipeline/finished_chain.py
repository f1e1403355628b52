"""A run through steps 1 to 9 by the stages themselves, in one process: two folds, one layer, a few steps."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from arena_distill.pipeline.run_environment import only, settings_of
from tests.pipeline.small_run import write_profile

RUN = "x"


@dataclass(frozen=True)
class FinishedChain:
    """Where it is, and what it was told."""

    out: Path
    environment: Mapping[str, str]

    @property
    def models(self) -> Path:
        return self.out / "model_save" / RUN

    def sub(self, name: str) -> Path:
        return self.out / "sub" / f"{RUN}_{name}"

    def told(self, **settings: str | Path) -> dict[str, str]:
        """The same settings with others in their place."""
        return dict(self.environment) | {name: str(value) for name, value in settings.items()}


def run_chain(directory: Path, backbones: Path, train: Path, test: Path) -> FinishedChain:
    """Every stage as its script calls it, one after the other."""
    out = directory / "out"
    profile = write_profile(directory / "small.env", out, backbones, train, test)
    lines = (line.partition("=") for line in profile.read_text("utf-8").splitlines())
    environment = {name: value for name, _, value in lines} | {
        "RUN": RUN, "TEACHER_MERGE": "1", "QUANT_MAX_CALIB_SAMPLES": "16", "QUANT_MIN_AGREEMENT": "0.5",
        "QUANT_MAX_LOGLOSS_INCREASE": "1", "INFER_TRAIN_SHARDS": "1",
    }  # fmt: skip
    chain = FinishedChain(out, environment)
    with only(environment):
        _first_half(environment)
        _second_half(chain)
    return chain


def _first_half(environment: Mapping[str, str]) -> None:
    from arena_distill.data.fold_settings import FoldSettings
    from arena_distill.data.fold_stage import run as make_folds
    from arena_distill.inference.oof_settings import OofSettings
    from arena_distill.inference.oof_stage import infer_teachers
    from arena_distill.training.distill_settings import DistillSettings
    from arena_distill.training.distill_stage import distill_students
    from arena_distill.training.post_pretrain_settings import PostPretrainSettings
    from arena_distill.training.post_pretrain_stage import post_pretrain_all
    from arena_distill.training.teacher_settings import TeacherSettings
    from arena_distill.training.teacher_stage import train_teachers

    post_pretrain_all(settings_of(PostPretrainSettings, environment))
    make_folds(settings_of(FoldSettings, environment))
    train_teachers(settings_of(TeacherSettings, environment))
    infer_teachers(settings_of(OofSettings, environment))
    distill_students(settings_of(DistillSettings, environment))


def _second_half(chain: FinishedChain) -> None:
    from arena_distill.conversion.average_settings import AverageSettings
    from arena_distill.conversion.average_stage import average_students
    from arena_distill.conversion.quantize_settings import QuantizeSettings
    from arena_distill.conversion.quantize_stage import quantize_student
    from arena_distill.inference.export_head import ExportHeadSettings, export_head
    from arena_distill.inference.predict_settings import PredictSettings
    from arena_distill.inference.predict_stage import predict

    average_students(settings_of(AverageSettings, chain.environment))
    quantize_student(settings_of(QuantizeSettings, chain.environment))
    merged = chain.models / "final_merged_model"
    head = merged / "classifier_head.pt"
    export_head(settings_of(ExportHeadSettings, chain.told(MODEL_DIR=merged, OUT=head)))
    predict(settings_of(PredictSettings, chain.told(HEAD_PATH=head)))
    run_step_9(chain)


def run_step_9(chain: FinishedChain) -> None:
    """Ensemble, evaluation and report, as ``step9_eval.sh`` calls them."""
    from arena_distill.evaluation.evaluate_submission import evaluate
    from arena_distill.evaluation.evaluation_settings import EvaluationSettings
    from arena_distill.evaluation.submission_ensemble import ensemble_files
    from arena_distill.report.report_settings import ReportSettings
    from arena_distill.report.report_stage import write_report

    with only(chain.environment):
        ensemble = chain.sub("final_ensemble.csv")
        test = Path(chain.environment["TEST_CSV"])
        ensemble_files(
            ensemble,
            [chain.sub("final_submission.csv")],
            weights=None,
            space="mean",
            test_csv=test,
            started=time.time(),
        )
        evaluate(settings_of(EvaluationSettings, chain.told(SUBMISSION=ensemble)))
        write_report(settings_of(ReportSettings, chain.environment))


@contextmanager
def without(*paths: Path) -> Iterator[None]:
    """Files or directories moved away, and put back."""
    with TemporaryDirectory() as elsewhere:
        for path in paths:
            shutil.move(path, Path(elsewhere) / path.name)
        try:
            yield
        finally:
            for path in paths:
                shutil.move(Path(elsewhere) / path.name, path)


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """A file with other content, and with its own again, and the same time of change."""
    before, when = path.read_bytes(), path.stat()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
