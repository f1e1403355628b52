"""Step 7 as a whole: the quantized model, made where it is not there already."""

from __future__ import annotations

from arena_distill.conversion.quantize_job import plan_quantization
from arena_distill.conversion.quantize_settings import QuantizeSettings


def quantize_student(settings: QuantizeSettings) -> None:
    """Quantize the model that the settings name, unless its quantized copy is up to date.

    Raises:
        ArenaError: bad settings or input, or the quantized model lost too much; an older one stays in its place.
    """
    job = plan_quantization(settings)
    if not settings.force and job.is_up_to_date():
        print(f"{job.final}: up to date (FORCE=1 quantizes again)")
        return
    if old := job.replaces():
        print(f"note: replaces the one that is there ({old})")
    # Not before: importing torch takes longer than finding that there is nothing to do.
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries()
    from arena_distill.conversion.quantize import quantize

    quantize(settings, job)
