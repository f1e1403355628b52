"""In auto-gptq's own environment: load the quantized backbone and compare its logits with ours.

read_with_auto_gptq.py DIR, where write_quantized.py wrote. Fails if they differ by more than rounding to float16 scales
in another order explains, or if a verdict changes.
"""

import sys
from pathlib import Path

import auto_gptq
import torch
import transformers
from auto_gptq import AutoGPTQForCausalLM
from safetensors.torch import load_file

BOUND = 1e-3  # relative to the largest logit


def main(directory: Path) -> int:
    ours = load_file(directory / "ours.safetensors")
    head = load_file(directory / "quantized" / "classifier_head.safetensors")["score.weight"]
    model = AutoGPTQForCausalLM.from_quantized(
        str(directory / "quantized"), device="cpu", use_safetensors=True, use_triton=False,
        disable_exllama=True, disable_exllamav2=True, torch_dtype=torch.float32, inject_fused_attention=False,
        inject_fused_mlp=False,
    )  # fmt: skip
    layer = model.model.model.layers[0].mlp.down_proj
    with torch.inference_mode():  # ids, not texts: transformers 4 does not know tokenizers that transformers 5 saved
        hidden = model.model.model(input_ids=ours["ids"]).last_hidden_state
        causal = hidden @ model.model.model.embed_tokens.weight.T  # the classifier has no output layer of its own
    verdict = hidden[:, -1] @ head.T.float()
    print(f"{directory.name}: auto-gptq {auto_gptq.__version__}, transformers {transformers.__version__}, "
          f"torch {torch.__version__}, {type(layer).__module__}.{type(layer).__name__}")  # fmt: skip
    failed = False
    for name, theirs in (("causal", causal), ("verdict", verdict)):
        gap = float((theirs - ours[name]).abs().max() / ours[name].abs().max())
        same = float((theirs.argmax(-1) == ours[name].argmax(-1)).float().mean())
        print(f"  {name} logits {list(theirs.shape)}: largest relative difference {gap:.2e}, equal argmax {same:.1%}")
        failed |= not (gap <= BOUND and same == 1)
    print("  FAILED" if failed else "  the same")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
