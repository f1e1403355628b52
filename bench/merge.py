"""Merge a LoRA adapter into a synthetic Llama of 2 GB in eight files: time and memory, beside PEFT.

    python bench/merge.py                   # 2 GB in bfloat16
    python bench/merge.py --quick

PEFT loads the model, merges and saves it (`merge_and_unload`, `save_pretrained`). Each merge runs in a process of its
own, and the two take turns. Memory is the peak of the resident set (mapped pages count), less that of a process with
the same imports. Our time includes hashing every file for the manifest, which PEFT does not do.

Equality: every tensor of the two outputs, within one part in a million.

What it does not show: models larger than the memory, which PEFT cannot merge at all; slow disks.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Measured, Row, Timed, arguments, finish, measure, peer_version, run_peer
from memory import peak_mb

from arena_distill.models.safetensors_file import DTYPE_BYTES, make_header

FILE_BYTES = 264 << 20  # 2 GB make eight files
MARGIN_MB = 500.0  # the merger may take one file and this much
LAYERS, QUICK_LAYERS, RANK, REPEATS = 20, 2, 64, 2
TIME_TARGET, MEMORY_TARGET = 1.0, 4.0
HIDDEN, INNER, HEADS, KEY_HEADS, VOCABULARY = 2048, 5632, 32, 8, 32000  # the widths of TinyLlama
LINEAR = {  # [out, in] of what the adapter changes
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN * KEY_HEADS // HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN * KEY_HEADS // HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
TYPES = {"bfloat16": "BF16", "float32": "F32"}
Shapes = dict[str, tuple[int, ...]]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--dtype", choices=TYPES, default="bfloat16", help="of the base (default: %(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, directory = options.measure
        print(json.dumps({"imports": imports, "merge": merge}[what](Path(directory))))
        return 0
    layers = QUICK_LAYERS if options.quick else LAYERS
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        print(f"writing a model of {layers} layers …", flush=True)
        sizes = write_base(directory / "base", layers, TYPES[options.dtype])
        write_adapter(directory / "adapter", layers, RANK)
        idle = {"ours": ours(directory, "imports"), "peft": peft(directory, "imports")}
        ways = {"ours": partial(ours, directory, "merge"), "peft": partial(peft, directory, "merge")}
        measured = measure(ways, 1 if options.quick else REPEATS, warm_up=lambda: None)
        difference = compare(directory)
    largest = max(sizes) / 1e6
    result = {
        "model": {"gb": round(sum(sizes) / 1e9, 3), "files": len(sizes), "largest_file_mb": round(largest, 1)},
        "dtype": options.dtype,
        "rank": RANK,
        "bound_mb": round(largest + MARGIN_MB, 1),
        "seconds": measured.seconds,
        "seconds_until_written": measured.results["ours"]["seconds_until_written"],
        "peak_mb": {way: round(measured.results[way]["peak_mb"] - idle[way].result["peak_mb"], 1) for way in ways},
        "imports_mb": {way: round(idle[way].result["peak_mb"], 1) for way in ways},
        "peft_version": peer_version("peft"),
        **difference,
    }
    finish("merge", {"measured": result}, table(measured, result), options.quick)
    return 0


def base_shapes(layers: int) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        for name, shape in LINEAR.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (HIDDEN,)
    return {**shapes, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_base(directory: Path, layers: int, dtype: str) -> list[int]:
    """A checkpoint of random weights; returns the sizes of its files."""
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": {stored: name for name, stored in TYPES.items()}[dtype],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))
    files: list[Shapes] = [{}]
    for name, shape in base_shapes(layers).items():
        if volume(files[-1], dtype) + volume({name: shape}, dtype) > FILE_BYTES:
            files.append({})
        files[-1][name] = shape
    places = {}
    for number, shapes in enumerate(files, 1):
        file = directory / f"model-{number:05}-of-{len(files):05}.safetensors"
        write_random(file, shapes, dtype, seed=number)
        places.update(dict.fromkeys(shapes, file.name))
    index = {"metadata": {"total_size": sum(volume(shapes, dtype) for shapes in files)}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return [file.stat().st_size for file in sorted(directory.glob("*.safetensors"))]


def volume(shapes: Shapes, dtype: str) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * DTYPE_BYTES[dtype]


def write_adapter(directory: Path, layers: int, rank: int) -> None:
    directory.mkdir()
    shapes: Shapes = {}
    for layer in range(layers):
        for name, (out, inner) in LINEAR.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            shapes[f"{module}.lora_A.weight"], shapes[f"{module}.lora_B.weight"] = (rank, inner), (out, rank)
    write_random(directory / "adapter_model.safetensors", shapes, "F32", seed=0)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.split(".")[-1] for name in LINEAR],
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))


def write_random(file: Path, shapes: Shapes, dtype: str, seed: int) -> None:
    """Normal values of deviation 0.02, a million drawn and used again and again."""
    pool = np.random.default_rng(seed).standard_normal(1 << 20, dtype=np.float32) * np.float32(0.02)
    stored = (pool.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else pool
    with file.open("wb") as stream:
        stream.write(make_header(((name, dtype, shape) for name, shape in shapes.items()), {"format": "pt"}))
        for shape in shapes.values():
            left = math.prod(shape)
            while left:
                stream.write(stored[:left].tobytes())
                left -= min(left, len(stored))


def ours(directory: Path, what: str) -> Timed:
    """What a process of our own says."""
    shutil.rmtree(directory / "ours", ignore_errors=True)
    command = [sys.executable, __file__, "--measure", what, str(directory)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return timed(run.stdout.splitlines()[-1])


def peft(directory: Path, what: str) -> Timed:
    """What the peer's process says."""
    shutil.rmtree(directory / "peft", ignore_errors=True)
    run_peer("peer_merge.py", directory, what, str(FILE_BYTES), directory / "peer.json")
    return timed((directory / "peer.json").read_text())


def timed(document: str) -> Timed:
    figures = json.loads(document)
    return Timed(figures, figures["seconds"])


def imports(directory: Path) -> dict[str, Any]:
    """Memory of a process that only loads the libraries."""
    import torch  # noqa: F401

    import arena_distill.models.merge  # noqa: F401

    return {"peak_mb": peak_mb(), "seconds": 0.0}


def merge(directory: Path) -> dict[str, Any]:
    """Our merge; loading the libraries is not timed."""
    import torch  # noqa: F401

    from arena_distill.models.merge import merge_adapter

    started = time.perf_counter()
    written = []
    merge_adapter(
        str(directory / "base"),
        directory / "adapter",
        directory / "ours",
        verify=lambda _: written.append(time.perf_counter()),
    )
    return {
        "peak_mb": peak_mb(),
        "seconds": round(time.perf_counter() - started, 2),
        "seconds_until_written": round(written[0] - started, 2),
    }


def compare(directory: Path) -> dict[str, Any]:
    """How many tensors of the two outputs differ by more than one part in a million, and in any bit."""
    import torch

    ours, peer = (dict(all_tensors(directory / name)) for name in ("ours", "peft"))
    if ours.keys() != peer.keys():
        raise SystemExit("the two outputs have different tensors")
    differing = bits = 0
    for name, handle in ours.items():
        a, b = handle.get_tensor(name), peer[name].get_tensor(name)
        bits += not torch.equal(a, b)
        differing += not torch.allclose(a.double(), b.double(), rtol=1e-6, atol=0)
    return {"tensors": len(ours), "differing_tensors": differing, "tensors_differing_in_a_bit": bits}


def all_tensors(directory: Path) -> Iterator[tuple[str, Any]]:
    """Name and open file of every tensor."""
    from safetensors import safe_open

    for file in sorted(directory.glob("*.safetensors")):
        handle = safe_open(file, "pt")
        yield from ((name, handle) for name in handle.keys())  # noqa: SIM118  (not a mapping)


def table(measured: Measured, result: dict[str, Any]) -> list[Row]:
    """Time and memory beside PEFT's, and our own bound."""
    model, peak, bound = result["model"], result["peak_mb"], result["bound_mb"]
    equal = not result["differing_tensors"]
    of = f"{model['gb']:.1f} GB in {model['files']} files, {result['dtype']}, rank {result['rank']}"
    return [
        Row(
            "streaming merge: time",
            "peft merge_and_unload + save",
            measured.ratio("peft", "ours"),
            TIME_TARGET,
            equal,
            f"{measured.median('peft'):.1f} s against {measured.median('ours'):.1f} s; {of}; "
            f"{result['differing_tensors']} of {result['tensors']} tensors differ",
        ),
        Row(
            "streaming merge: memory",
            "peft merge_and_unload + save",
            peak["peft"] / peak["ours"],
            MEMORY_TARGET,
            equal,
            f"peaks of {peak['peft']:,.0f} MB against {peak['ours']:,.0f} MB, beyond those of the imports",
        ),
        Row(
            f"streaming merge: memory within one file + {MARGIN_MB:.0f} MB",
            "-",
            peak["ours"] / bound,
            1.0,
            equal,
            f"{peak['ours']:,.0f} of {bound:,.0f} MB",
            at_most=True,
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
