"""Step 8 as a whole: the submission of one student, made where it is not there already. Imports no torch by itself."""

from __future__ import annotations

from arena_distill.inference.predict_job import PredictJob, plan_prediction
from arena_distill.inference.predict_settings import MERGED, QUANTIZED, PredictSettings, UnquantizedSettings
from arena_distill.models.quantized import is_quantized
from arena_distill.runtime.errors import InputError


def predict(settings: PredictSettings) -> None:
    """Write the submission, its logits and its manifest.

    Raises:
        ArenaError: bad settings or input; an older submission stays as it is.
    """
    job = plan_prediction(settings)
    _say_which(settings, job)
    if not settings.force and job.is_up_to_date():
        print(f"{job.final}: up to date (FORCE=1 predicts again)")
        job.tidy()
        return
    # Not before: importing torch takes longer than finding that there is nothing to do.
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries()
    from arena_distill.inference.predict import predict_rows

    for other in job.leftovers(mine=False):
        print(f"note: {other} is left from an interrupted run with other settings; delete it when not needed")
    try:
        predict_rows(settings, job)
    except KeyboardInterrupt:
        print(f"{job.final}: interrupted; the same command goes on where it stopped")
        raise


def _say_which(settings: PredictSettings, job: PredictJob) -> None:
    if isinstance(settings, UnquantizedSettings) and is_quantized(job.model):
        raise InputError(f"{job.model}: has quantized weights -> scripts/student_gptq_infer.py predicts with them")
    if not settings.model_dir and job.model.name == MERGED and not isinstance(settings, UnquantizedSettings):
        print(f"note: no {settings.model_save / QUANTIZED}, so {job.model} predicts (step 7 makes the quantized one)")
