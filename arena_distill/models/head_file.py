"""The classification head of a saved student, apart from its body: what quantization of the body would lose."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from arena_distill.models.classifier import HEAD_MODULES
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import InputError

HEAD_PT, HEAD_SAFETENSORS = "classifier_head.pt", "classifier_head.safetensors"


def read_head(directory: Path) -> dict[str, torch.Tensor]:
    """The head's tensors by the names they have in the plain model (``score.weight``, ``classifier.bias`` …).

    Args:
        directory: a saved classifier, or an adapter that was saved with its head.

    Raises:
        InputError: its weights cannot be read, or hold no head.
    """
    head: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        if file.name == HEAD_SAFETENSORS:
            continue
        try:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                    parts = name.split(".")
                    places = [place for place, part in enumerate(parts) if part in HEAD_MODULES]
                    if places and "lora_A" not in parts and "lora_B" not in parts:
                        head[name.removeprefix("base_model.model.")] = weights.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: cannot be read ({error}) -> train the student again") from error
    if not head:
        raise InputError(f"{directory}: its weights hold no classification head -> train the student again")
    return head


def save_head(directory: Path) -> None:
    """Write the head of the model in ``directory`` beside it, as ``classifier_head.pt`` and ``….safetensors``.

    The former holds a plain dictionary of tensors: ``torch.load(path, weights_only=True)`` reads it.

    Raises:
        InputError: see ``read_head``.
    """
    head = {name: tensor.contiguous() for name, tensor in read_head(directory).items()}
    buffer = io.BytesIO()
    torch.save(head, buffer)
    write_atomically(directory / HEAD_PT, buffer.getvalue())
    write_atomically(directory / HEAD_SAFETENSORS, save(head, metadata={"format": "pt"}))


def head_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """What tells one head from another: a hash of names, shapes and float32 values, in the order of the names.

    Args:
        tensors: as ``read_head`` gives them; their order and type do not count, as far as float32 holds their values.
    """
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        whole.update(f"{name}\0{list(values.shape)}\0".encode())
        whole.update(values.numpy().astype("<f4", copy=False).tobytes())
    return whole.hexdigest()
