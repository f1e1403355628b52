"""Whether a merged model says what base and adapter say: checked before a merge is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.release import release_memory
from arena_distill.runtime.errors import ArenaError
from arena_distill.training.processes import use_all_cores

PARITY_BOUND = {"float32": 1e-4, "bfloat16": 0.05}  # of a probability; bfloat16 rounds every merged weight to 8 bits
PROBE = "Prompt:\nWhich is larger, 7 or 12?\n\nResponse A:\n12 is larger.\n\nResponse B:\n7 is larger.\n\nBetter:"


def check_gap(merged: Path, gap: float, dtype: str) -> None:
    """Refuse a merged model that is off by more than rounding explains.

    Args:
        merged: the model, for the message.
        gap: largest difference of a probability.
        dtype: what was computed in.

    Raises:
        ArenaError: the gap is beyond ``PARITY_BOUND``, or not a number.
    """
    if not gap <= PARITY_BOUND[dtype]:
        raise ArenaError(
            f"{merged}: the merged model's probabilities differ from the adapter's by up to {gap:.4f}, more than "
            f"{PARITY_BOUND[dtype]} -> nothing was published; do without a merged copy (TEACHER_MERGE=0, "
            "POSTPRE_MERGE=0)"
        )


def language_model_parity(base: str, adapter: Path, merged: Path, bf16: bool) -> dict[str, Any]:
    """Compare the next-token probabilities of both over a short text, on the CPU.

    Returns:
        The largest difference, for the manifest.

    Raises:
        ArenaError: it is beyond what rounding explains.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from arena_distill.models.adapters import load_adapter
    from arena_distill.models.classifier import load_tokenizer

    quiet_libraries()
    use_all_cores()
    dtype = "bfloat16" if bf16 else "float32"
    ids = torch.tensor([load_tokenizer(str(adapter))(PROBE)["input_ids"]])
    said = []
    for name in (base, str(merged)):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
        if name == base:
            model = load_adapter(model, adapter)
        model.eval()
        with torch.inference_mode():
            said.append(model(input_ids=ids).logits.float().softmax(dim=-1))
        del model
        release_memory()  # two 70B models do not fit side by side
    gap = float((said[0] - said[1]).abs().max())
    check_gap(merged, gap, dtype)
    return {"parity": {"tokens": ids.shape[1], "largest_probability_gap": gap, "dtype": dtype}}
