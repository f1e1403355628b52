"""One base model to be post-pretrained: what determines the result, and whether it is there. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from arena_distill.data.find_file import find_file
from arena_distill.data.reading import data_sha256
from arena_distill.models.backbone import check_backbone, model_identity
from arena_distill.models.merge import STAGE as MERGE_STAGE
from arena_distill.runtime.artifacts import recover, require_replaceable, require_writable, sha256_path
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.job import Job
from arena_distill.runtime.stages import POST_PRETRAIN
from arena_distill.training.post_pretrain_settings import FamilyPlan, PostPretrainSettings

STAGE = POST_PRETRAIN.name
BASE_ROWS = "left_out_prompts_of"  # in the manifest: rows_sha256 of the base file whose prompts were left out

# What these settings say does not change the weights; files count by their content.
_WITHOUT_EFFECT = {
    "run_stage", "ut_data", "train_csv", "llama_base", "qwen_base", "gemma_base", "llama_tok", "qwen_tok", "gemma_tok",
    "auto_downgrade", "llama_ladder", "qwen_ladder", "gemma_ladder", "scratch_base", "output_dir", "run", "force",
    "report_to", "postpre_save_steps", "postpre_merge", "base_model", "tokenizer", "out_dir",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PostPretrainJob(Job):
    """A training run as its manifest will record it."""

    plan: FamilyPlan
    base: str
    tokenizer: str
    scratch: Path | None  # where checkpoints go, if not beside the adapter

    @property
    def work(self) -> Path:
        """Directory of the checkpoints."""
        if self.scratch is None:
            return self.partial / "training"
        place = hashlib.sha256(str(self.final.resolve()).encode()).hexdigest()[:8]  # runs share a scratch disk
        return self.scratch / f"{self.partial.name}-{place}" / "training"


def plan_post_pretraining(settings: PostPretrainSettings, plan: FamilyPlan, base: str) -> PostPretrainJob:
    """Check and hash the inputs of one family.

    Args:
        settings: of the run.
        plan: the family.
        base: the model to train, which AUTO_DOWNGRADE may have chosen.

    Raises:
        InputError: an input is missing, or an output directory holds something that is not ours to replace.
    """
    if not settings.data_paths:
        raise InputError("--ut-data (or UT_DATA): no file is named -> give preference data such as UltraFeedback")
    inputs = {f"ut_data_{number}": data_sha256(path) for number, path in enumerate(settings.data_paths)}
    if (votes := base_votes(settings)) is not None:
        inputs["train_csv"] = data_sha256(votes)
    base = check_backbone(base, plan.setting)
    tokenizer = check_backbone(plan.tokenizer, plan.setting.replace("_BASE", "_TOK")) if plan.tokenizer else base
    inputs |= {"base_model": model_identity(base)}
    if tokenizer != base:
        inputs["tokenizer"] = sha256_path(Path(tokenizer)) if Path(tokenizer).is_dir() else tokenizer
    final = plan.adapter
    recover(final)
    require_replaceable(final, STAGE)
    if plan.merged is not None:
        require_replaceable(plan.merged, MERGE_STAGE)
    decisive = {name: value for name, value in settings.dump().items() if name not in _WITHOUT_EFFECT}
    if settings.scratch_base:
        require_writable(Path(settings.scratch_base) / "training")
    return PostPretrainJob(
        settings=decisive,
        inputs=inputs,
        final=final,
        plan=plan,
        base=base,
        tokenizer=tokenizer,
        scratch=Path(settings.scratch_base) if settings.scratch_base else None,
    )


def base_votes(settings: PostPretrainSettings) -> Path | None:
    """The base file, whose rows will be held out from teachers; None if there is none yet."""
    try:
        return find_file(settings.train_csv, "train", "--train-csv")
    except InputError:
        return None
