"""Step 3's merged copies: whether to make them, and the check that each judges rows as its adapter does."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from arena_distill.data.prompts import TEXT_FORMAT_FILE
from arena_distill.data.records import Rows
from arena_distill.evaluation.metrics import softmax
from arena_distill.models.backbone import local_directory
from arena_distill.models.merge import merge_adapter
from arena_distill.models.release import release_memory
from arena_distill.runtime.artifacts import fingerprint, is_up_to_date, nearest_existing, read_manifest
from arena_distill.training.merge_parity import check_gap
from arena_distill.training.teacher_job import TeacherJob
from arena_distill.training.teacher_settings import TeacherSettings

SHARE_OF_DISK = 4  # merged copies of all folds may take one part in this many of the free disk
PARITY_ROWS = 8


def wants_merged(settings: TeacherSettings, jobs: Sequence[TeacherJob]) -> tuple[bool, str]:
    """Whether to write merged copies, and why."""
    if settings.teacher_merge != "auto":
        return settings.teacher_merge == "1", f"TEACHER_MERGE={settings.teacher_merge}"
    if any((read_manifest(job.final) or {}).get("base_bits") == "nf4" for job in jobs):
        return False, "TEACHER_MERGE=auto: trained on a 4-bit base, which a merged copy would not judge like"
    if all(job.merged is None or (job.merged / "config.json").is_file() for job in jobs):
        return True, "TEACHER_MERGE=auto: merged copies are there already"
    # Every fold, whichever this job trains: the tasks of an array share one disk.
    needed = settings.n_folds * sum(_weight_bytes(base) for base in {job.name: job.base for job in jobs}.values())
    free = shutil.disk_usage(nearest_existing(jobs[0].final)).free
    few = needed * SHARE_OF_DISK <= free
    return few, (
        f"TEACHER_MERGE=auto: merged copies of all folds take {needed / 1e9:.2f} GB, {free / 1e9:.1f} GB are free"
        f"{'' if few else '; step 4 uses base + adapter'}"
    )


def is_merged(job: TeacherJob) -> bool:
    """Whether a whole merged copy of this very adapter is there."""
    assert job.merged is not None
    copy, adapter = read_manifest(job.merged), read_manifest(job.final)
    if copy is None or adapter is None:
        return False
    same = (copy.get("verified") or {}).get("adapter_outputs") == fingerprint({}, adapter["outputs"])
    return same and is_up_to_date(job.merged, copy["fingerprint"])


def merge_teacher(settings: TeacherSettings, job: TeacherJob, rows: Rows) -> None:
    """Write base + adapter as one model, after a check on a few rows that it judges alike.

    Raises:
        InputError: base and adapter do not belong together, or the disk is too small.
        ArenaError: the merged model's probabilities are off by more than rounding explains.
    """
    assert job.merged is not None
    report = merge_adapter(
        job.base, job.final, job.merged, force=settings.force, verify=partial(_verify, settings, job, rows)
    )
    print(f"{job.merged}: {report.summary()}")


def _verify(settings: TeacherSettings, job: TeacherJob, rows: Rows, merged: Path) -> dict[str, Any]:
    """Compare merged model and adapter on rows; what is returned tells step 4 which teacher this is a copy of."""
    shutil.copyfile(job.final / TEXT_FORMAT_FILE, merged / TEXT_FORMAT_FILE)
    dtype = "bfloat16" if settings.teacher_bf16 else "float32"
    rows = rows.slice(0, PARITY_ROWS)
    of_adapter, of_copy = (_probabilities(path, rows, settings, dtype) for path in (job.final, merged))
    gap = float(np.abs(of_adapter - of_copy).max())
    check_gap(job.merged or merged, gap, dtype)
    manifest = read_manifest(job.final) or {}
    return {
        "family": job.name,
        "fold": job.fold,
        "folds_json": manifest["inputs"]["folds_json"],
        "train_csv": manifest["inputs"]["train_csv"],
        "all_settings": manifest["all_settings"],
        "adapter_outputs": fingerprint({}, manifest["outputs"]),
        "parity": {"rows": len(rows), "largest_probability_gap": gap, "dtype": dtype},
    }


def _probabilities(path: Path, rows: Rows, settings: TeacherSettings, dtype: str) -> np.ndarray:
    from arena_distill.inference.judge import load_judge

    # On the CPU: there is room for a model that the GPU could train in 4 bits only.
    judge = load_judge(path, max_length=settings.teacher_maxlen, batch_rows=1, dtype=dtype, device="cpu")
    probabilities = softmax(judge.logits(rows))
    del judge
    release_memory()  # two 70B models do not fit side by side
    return probabilities


def _weight_bytes(base: str) -> int:
    return sum(file.stat().st_size for file in local_directory(base).glob("*.safetensors"))
