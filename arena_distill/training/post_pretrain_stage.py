"""Step 1 as a whole: every family that the settings ask for, trained and merged where it is not there already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from arena_distill.models.architecture import LADDERS
from arena_distill.models.memory import TrainingShape, choose_base
from arena_distill.runtime.artifacts import fingerprint, read_manifest, was_restarted
from arena_distill.runtime.errors import SettingsError
from arena_distill.training.post_pretrain_job import BASE_ROWS, STAGE, PostPretrainJob, plan_post_pretraining
from arena_distill.training.post_pretrain_settings import FamilyPlan, PostPretrainSettings
from arena_distill.training.processes import is_main_process, process_count, same_for_all, say


def post_pretrain_all(settings: PostPretrainSettings) -> None:
    """Choose the bases, then train and merge what is missing.

    Raises:
        ArenaError: bad settings or input; models finished before stay.
    """
    bases = {plan.family: plan.base for plan in settings.plans}
    if settings.auto_downgrade:
        again = settings.force and not was_restarted()
        bases |= _choose(settings, [plan for plan in settings.plans if again or not _is_there(settings, plan)])
    jobs = [plan_post_pretraining(settings, plan, bases[plan.family]) for plan in settings.plans]
    waiting = [job for job in jobs if job.is_wanted(settings.force)]
    if waiting:
        _train(settings, waiting)
    for job in jobs:
        if job not in waiting:
            say(f"{job.final}: up to date (FORCE=1 trains it again)")
        if job.plan.merged is not None and is_main_process():
            _merge(settings, job, trained=job in waiting)


def _train(settings: PostPretrainSettings, jobs: list[PostPretrainJob]) -> None:
    # Not before: importing torch takes longer than finding that there is nothing to do.
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries("training")
    from arena_distill.models.release import release_memory
    from arena_distill.training.post_pretrain import load_rows, post_pretrain

    rows, counts = load_rows(settings)
    try:
        for job in jobs:
            if old := job.replaces():
                say(f"note: {job.final} is there already and will be replaced ({old})")
            post_pretrain(settings, job, rows, counts)
            release_memory()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint")
        raise


def _merge(settings: PostPretrainSettings, job: PostPretrainJob, trained: bool) -> None:
    from arena_distill.models.merge import merge_adapter

    def verify(merged: Path) -> dict[str, object]:
        from arena_distill.training.merge_parity import language_model_parity

        manifest = read_manifest(job.final) or {}
        made_of = {
            BASE_ROWS: manifest["rows"][BASE_ROWS],
            "adapter_outputs": fingerprint({}, manifest["outputs"]),
        }
        return language_model_parity(job.base, job.final, merged, settings.postpre_bf16) | {STAGE: made_of}

    assert job.plan.merged is not None
    again = settings.force and trained
    report = merge_adapter(job.base, job.final, job.plan.merged, force=again, verify=verify)
    print(f"{job.plan.merged}: {report.summary()}")


def _is_there(settings: PostPretrainSettings, plan: FamilyPlan) -> bool:
    """Whether the base asked for is trained or begun: a smaller machine must not replace it by a lesser one."""
    job = plan_post_pretraining(settings, plan, plan.base)
    return job.is_up_to_date() or job.partial.is_dir()


def _choose(settings: PostPretrainSettings, plans: list[FamilyPlan]) -> dict[str, str]:
    """The base of each family, chosen by the main process before any weights are loaded."""
    chosen: dict[str, str] = {}
    if is_main_process() and plans:
        available, source = _free_memory()
        print(f"AUTO_DOWNGRADE: {available / 1e9:.1f} GB are free for training on {source}")
        for plan in plans:
            chosen[plan.family] = _choose_one(settings, plan, available, source)
    return same_for_all(chosen)


def _choose_one(settings: PostPretrainSettings, plan: FamilyPlan, available: int, source: str) -> str:
    on_gpu = source.startswith("GPU")
    quant = settings.postpre_quant if settings.postpre_quant != "auto" else ("nf4" if on_gpu else "none")
    shape = TrainingShape(
        rows=settings.postpre_per_device_bs,
        max_length=settings.postpre_maxlen,
        lora_r=settings.postpre_lora_r,
        quant="nf4" if quant == "nf4" else "none",
        weight_bytes=2 if settings.postpre_bf16 else 4,
        gradient_checkpointing=settings.postpre_gradient_checkpointing,
        full_vocabulary_logits=settings.postpre_objective == "lm",
        n_devices=process_count() if on_gpu and settings.postpre_fsdp and quant == "none" else 1,
        on_gpu=on_gpu,
    )
    ladder = settings.ladder(plan.family) or LADDERS.get(plan.family, ())
    choice = choose_base(plan.base, ladder, shape, available)
    for name, estimate in choice.estimates.items():
        print(f"{name}:\n{estimate}")
    print(f"AUTO_DOWNGRADE: {choice.reason}")
    return choice.name


def _free_memory() -> tuple[int, str]:
    """In a process of its own: asking CUDA takes half a gigabyte of every GPU for as long as the asker lives."""
    code = "from arena_distill.models.free_memory import available_memory as a; print(*a(), sep='\\t')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    try:
        size, source = done.stdout.strip().splitlines()[-1].split("\t")
        return int(size), source
    except (ValueError, IndexError) as error:
        reason = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        raise SettingsError(
            f"AUTO_DOWNGRADE: the free memory cannot be found out ({reason[0]}) -> set it to 0"
        ) from error
