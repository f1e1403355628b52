"""The process in which GPTQModel runs: ``python -m arena_distill.models.gptq_worker REQUEST.json``.

What GPTQModel prints goes to ``gptqmodel.log`` beside the request; standard output carries one JSON object a line:
``{"layer": 3}`` after each layer, then ``{"done": true}`` or ``{"unsupported": reason}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

BATCH_TOKENS = 4096  # of calibration texts that go through a layer together


def quantize(request: dict[str, Any], answers: IO[str]) -> None:
    """Load, quantize and save as the request says (see ``gptq.quantize_gptq``)."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.models.auto import SUPPORTED_MODELS
    from gptqmodel.quantization.config import FORMAT

    from arena_distill.models.gptq import HEAD, stored_types
    from arena_distill.models.head_file import read_head
    from arena_distill.models.safetensors_file import read_checkpoint

    kind = json.loads((Path(request["model"]) / "config.json").read_text("utf-8"))["model_type"]
    if kind not in SUPPORTED_MODELS:
        say(answers, unsupported=f"GPTQModel does not know models of type {kind}")
        return
    config = QuantizeConfig(
        bits=request["bits"],
        group_size=request["group_size"],
        desc_act=False,
        sym=True,
        format=FORMAT.GPTQ,
        device=request["device"],
        offload_to_disk=False,
        fallback=None,  # else a layer that calibration did not reach would be rounded to nearest without a word
    )
    # A CPU has time for float32; on a GPU the layers run in the type that they are stored in.
    dtype = torch.float32 if request["device"] == "cpu" else "auto"
    model = GPTQModel.load(request["model"], config, dtype=dtype)
    model.layer_callback = lambda layer_idx, submodule_finalized: say(answers, layer=layer_idx)
    examples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in request["examples"]]
    longest = max(len(ids) for ids in request["examples"])
    model.quantize(examples, batch_size=max(1, BATCH_TOKENS // longest))  # padding does not count in the statistics
    head = read_head(Path(request["weights"]))[HEAD]
    with torch.device("cpu"):
        model.model.score = torch.nn.Linear(head.shape[1], head.shape[0], bias=False)
    types = stored_types(read_checkpoint(Path(request["weights"])).tensors)
    for name, parameter in model.model.named_parameters():
        if name in types:
            parameter.data = parameter.data.to(getattr(torch, types[name]))
    model.model.score.weight.data = head
    model.save(request["out"])
    say(answers, done=True)


def say(answers: IO[str], **message: Any) -> None:
    """One line to the process that waits."""
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def main() -> None:
    """Keep the pipe to the parent for answers, and send all else that is printed to the log."""
    request_file = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = os.open(request_file.with_name("gptqmodel.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    quantize(json.loads(request_file.read_text("utf-8")), answers)


if __name__ == "__main__":
    main()
