"""GPTQ quantization of a classifier's backbone: what can be quantized, group size, and the run of GPTQModel.

GPTQModel takes every directory for a causal language model and drops a classification head without a word. It is
given a view of the model (links to the weights, a configuration of its own), and the head is put back before saving.
It runs in a process of its own: it changes the environment, patches other libraries, prints pages and leaves a
``./logs`` where it stands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arena_distill.models.safetensors_file import StoredTensor, read_checkpoint
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import ArenaError, InputError, SettingsError
from arena_distill.runtime.progress import Progress

HEAD = "score.weight"
LAYERS = "model.layers."
SMALLEST_GROUP, LARGEST_GROUP = 16, 1024  # what GPTQModel packs
QUANTIZE_CONFIG = "quantize_config.json"
LOG_TAIL = 12  # lines of GPTQModel's log that go into an error


class GptqUnsupported(ArenaError):
    """GPTQModel does not know the architecture."""


def is_decoder(directory: Path) -> bool:
    """Whether the classifier's body is a decoder laid out as Llama's, which GPTQModel may know. No model is loaded."""
    tensors = read_checkpoint(directory).tensors
    return HEAD in tensors and any(name.startswith(LAYERS) for name in tensors)


def usable_group_size(directory: Path, wanted: int) -> int:
    """The largest group size up to ``wanted`` that divides the input features of every layer; -1 for whole rows.

    Args:
        directory: of the model.
        wanted: a power of two, or -1.
    """
    inputs = {
        tensor.shape[1]
        for name, tensor in read_checkpoint(directory).tensors.items()
        if name.startswith(LAYERS) and len(tensor.shape) == 2
    }
    size = wanted
    while size >= SMALLEST_GROUP and any(features % size for features in inputs):
        size //= 2
    return size if size >= SMALLEST_GROUP else -1


def quantize_gptq(
    model_dir: Path, out: Path, *, bits: int, group_size: int, examples: Sequence[Sequence[int]], device: str
) -> None:
    """Write the classifier in ``model_dir`` with a GPTQ backbone to ``out``: weights and both configurations.

    ``config.json`` stays that of the classifier, with ``quantization_config``; the weights hold the head as it was.
    The format is GPTQ's first version, symmetric, which auto-gptq reads.

    Args:
        model_dir: a plain sequence classifier, with its tokenizer.
        out: an existing directory.
        bits: 8 or 4.
        group_size: input features that share a scale; -1 for all.
        examples: token ids of the calibration texts.
        device: ``cpu`` or ``cuda``; weights come to the GPU layer by layer.

    Raises:
        SettingsError: GPTQModel is not installed.
        GptqUnsupported: it does not know the architecture.
        ArenaError: it failed.
    """
    if find_spec("gptqmodel") is None:
        raise SettingsError(
            "GPTQ needs GPTQModel -> pip install 'arena-distill[quantize]' (or QUANT_METHOD=int8: 8 bits without it)"
        )
    # In the output's place: it goes with what a kill leaves of that. Absolute, since the worker runs elsewhere.
    with tempfile.TemporaryDirectory(prefix=".gptq-", dir=out.resolve()) as name:
        scratch = Path(name)
        config = _causal_view(model_dir, scratch / "view")
        request = {
            "model": str(scratch / "view"),
            "weights": str(model_dir.resolve()),
            "out": str(out.resolve()),
            "bits": bits,
            "group_size": group_size,
            "device": device,
            "examples": [list(map(int, example)) for example in examples],
        }
        write_atomically(scratch / "request.json", json.dumps(request))
        _run_worker(scratch, model_dir, int(config["num_hidden_layers"]))
    _finish_configuration(model_dir, out)


def _causal_view(model_dir: Path, view: Path) -> dict[str, Any]:
    """Links to the model's files, and a configuration under which nothing is made up for want of an output layer."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = _read(model_dir / "config.json")
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get("model_type"))
    if causal is None:
        raise GptqUnsupported(f"{model_dir}: {config.get('model_type')} has no causal language model")
    view.mkdir()
    for file in model_dir.resolve().iterdir():
        if file.is_file() and not file.name.startswith(".") and file.name not in ("config.json", "manifest.json"):
            (view / file.name).symlink_to(file)
    # Tied, the embeddings stand in for the output layer: untied, one of the vocabulary's size would be drawn at random.
    write_atomically(
        view / "config.json", json.dumps(config | {"architectures": [causal], "tie_word_embeddings": True}, indent=2)
    )
    return config


def _run_worker(scratch: Path, model_dir: Path, layers: int) -> None:
    environment = os.environ | {
        "GPTQMODEL_DISABLE_PACK_EXT": "1",  # an extension that would be compiled for half a minute
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
    }
    # Its default for two cores is one worker, with which its pool fails.
    environment.setdefault("GPTQMODEL_CPU_WORKERS", str(min(12, max(2, (os.cpu_count() or 1) // 2))))
    command = [sys.executable, "-m", "arena_distill.models.gptq_worker", str(scratch / "request.json")]
    ended: dict[str, Any] = {}
    with (
        subprocess.Popen(command, cwd=scratch, env=environment, stdout=subprocess.PIPE, text=True) as worker,
        Progress("GPTQ", layers, "layers") as progress,
    ):
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                message = json.loads(line)
                if "layer" in message:
                    progress.update(message["layer"] + 1 - progress.rows)
                else:
                    ended = message
        except BaseException:
            worker.kill()
            raise
    if reason := ended.get("unsupported"):
        raise GptqUnsupported(f"{model_dir}: {reason}")
    if not ended.get("done"):
        log = scratch / "gptqmodel.log"
        tail = log.read_text("utf-8", errors="replace").splitlines()[-LOG_TAIL:] if log.is_file() else []
        raise ArenaError(
            f"{model_dir}: GPTQModel failed with exit code {worker.returncode} -> QUANT_METHOD=int8 does without it; "
            "the end of its log:\n  " + "\n  ".join(tail)
        )


def _finish_configuration(model_dir: Path, out: Path) -> None:
    """The classifier's configuration, and nothing of a generating model's."""
    for name in ("generation_config.json", "quant_log.csv"):
        (out / name).unlink(missing_ok=True)
    config = _read(model_dir / "config.json")
    # A classifier has no output layer. Told that there is one and that it is the embeddings, auto-gptq overwrites these
    # with the memory that it took for it.
    config |= {"tie_word_embeddings": False, "quantization_config": _read(out / QUANTIZE_CONFIG)}
    write_atomically(out / "config.json", json.dumps(config, indent=2) + "\n")


def stored_types(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Name to torch's name of the type that a checkpoint keeps it in."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return {name: names[tensor.dtype] for name, tensor in tensors.items() if tensor.dtype in names}


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text("utf-8"))
        return dict(document)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: cannot be read ({error}) -> make the model again") from error
