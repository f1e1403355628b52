"""Merge a LoRA adapter into a synthetic Llama of 2 GB in eight files, beside PEFT, and print memory and time.

    python bench/merge.py                   # 2 GB in bfloat16
    python bench/merge.py --layers 2        # a quick look

Each of the two merges runs in a process of its own. Its memory is the peak of the resident set (mapped pages count),
less that of a process with the same imports. The figures are also written to bench/results/merge.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from machine import machine

from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.safetensors_file import DTYPE_BYTES, make_header
from arena_distill.runtime.artifacts import git_revision

RESULT = Path(__file__).parent / "results" / "merge.json"
FILE_BYTES = 264 << 20  # 2 GB make eight files
MARGIN_MB = 500.0  # the merger may take one file and this much
LAYERS = 20
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS, help="depth of the model (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=64, help="of the adapter (default: %(default)s)")
    parser.add_argument("--dtype", choices=TYPES, default="bfloat16", help="of the base (default: %(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, directory = options.measure
        print(json.dumps(MEASURES[what](Path(directory))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        print(f"writing a model of {options.layers} layers …", flush=True)
        sizes = write_base(directory / "base", options.layers, TYPES[options.dtype])
        write_adapter(directory / "adapter", options.layers, options.rank)
        ours = figures(directory, "merge", "merge_imports")
        peer = figures(directory, "peft", "peft_imports")
        difference = child(directory, "compare")
    result = {
        "model": {"gb": round(sum(sizes) / 1e9, 3), "files": len(sizes), "largest_file_mb": round(max(sizes) / 1e6, 1)},
        "dtype": options.dtype,
        "rank": options.rank,
        "bound_mb": round(max(sizes) / 1e6 + MARGIN_MB, 1),
        "ours": ours,
        "peft": peer,
        "ratio": {
            "memory": round(peer["peak_mb"] / ours["peak_mb"], 2),
            "seconds": round(peer["seconds"] / ours["seconds"], 2),
        },
        **difference,
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(),
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "safetensors")},
        "git_revision": git_revision(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    report(result)
    if options.layers == LAYERS:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        print(f"written to {RESULT}")
    return 0 if ours["peak_mb"] <= result["bound_mb"] and not result["differing_tensors"] else 1


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
    import numpy as np

    pool = np.random.default_rng(seed).standard_normal(1 << 20, dtype=np.float32) * np.float32(0.02)
    stored = (pool.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else pool
    with file.open("wb") as stream:
        stream.write(make_header(((name, dtype, shape) for name, shape in shapes.items()), {"format": "pt"}))
        for shape in shapes.values():
            left = math.prod(shape)
            while left:
                stream.write(stored[:left].tobytes())
                left -= min(left, len(stored))


def figures(directory: Path, what: str, imports: str) -> dict[str, Any]:
    """Figures of one merge; memory above that of a process which only imports the same."""
    idle, measured = child(directory, imports), child(directory, what)
    return {
        **measured,
        "peak_mb": round(measured["peak_mb"] - idle["peak_mb"], 1),
        "imports_mb": round(idle["peak_mb"], 1),
    }


def child(directory: Path, what: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", what, str(directory)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return figures


def peak_mb() -> float:
    """Highest resident set of this process; the kernel's own mark, as ``getrusage`` inherits the parent's."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def measure_merge(directory: Path) -> dict[str, Any]:
    import torch  # noqa: F401  (not timed)

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


def measure_merge_imports(directory: Path) -> dict[str, Any]:
    import torch  # noqa: F401

    import arena_distill.models.merge  # noqa: F401

    return {"peak_mb": peak_mb()}


def measure_peft(directory: Path) -> dict[str, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    started = time.perf_counter()
    base = AutoModelForCausalLM.from_pretrained(directory / "base")
    merged = PeftModel.from_pretrained(base, str(directory / "adapter")).merge_and_unload()
    merged.save_pretrained(directory / "peft", max_shard_size=FILE_BYTES)
    return {"peak_mb": peak_mb(), "seconds": round(time.perf_counter() - started, 2)}


def measure_peft_imports(directory: Path) -> dict[str, Any]:
    import peft  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    quiet_libraries()
    return {"peak_mb": peak_mb()}


def compare(directory: Path) -> dict[str, Any]:
    """How many tensors of the two outputs differ by more than one part in a million, and in any bit."""
    import torch

    ours, peer = (dict(all_tensors(directory / name)) for name in ("ours", "peft"))
    if ours.keys() != peer.keys():
        raise SystemExit("the two outputs have different tensors")
    differing = bits = 0
    for name, (handle, expected) in ours.items():
        a, b = handle.get_tensor(expected), peer[name][0].get_tensor(expected)
        bits += not torch.equal(a, b)
        differing += not torch.allclose(a.double(), b.double(), rtol=1e-6, atol=0)
    return {"tensors": len(ours), "differing_tensors": differing, "tensors_differing_in_a_bit": bits}


def all_tensors(directory: Path) -> Iterator[tuple[str, tuple[Any, str]]]:
    from safetensors import safe_open

    for file in sorted(directory.glob("*.safetensors")):
        handle = safe_open(file, "pt")
        yield from ((name, (handle, name)) for name in handle.keys())  # noqa: SIM118  (not a mapping)


MEASURES = {
    "merge": measure_merge,
    "merge_imports": measure_merge_imports,
    "peft": measure_peft,
    "peft_imports": measure_peft_imports,
    "compare": compare,
}


def report(result: dict[str, Any]) -> None:
    """The table, and whether memory stays in its bound."""
    model, ours, peer, ratio = result["model"], result["ours"], result["peft"], result["ratio"]
    print(f"\n{model['gb']:.2f} GB in {model['files']} files, {result['dtype']}, rank {result['rank']}")
    print(f"{'':<8}{'peak MB':>10}{'seconds':>10}")
    for name, row in (("ours", ours), ("PEFT", peer)):
        print(f"{name:<8}{row['peak_mb']:>10,.0f}{row['seconds']:>10.1f}")
    print(f"{'ratio':<8}{ratio['memory']:>10.1f}{ratio['seconds']:>10.2f}   (PEFT / ours)")
    print(f"ours until written: {ours['seconds_until_written']:.1f} s; then files are hashed for the manifest")
    reached = "kept" if ours["peak_mb"] <= result["bound_mb"] else "NOT KEPT"
    print(f"bound of one file + {MARGIN_MB:.0f} MB = {result['bound_mb']:,.0f} MB: {reached}")
    print(f"tensors that differ from PEFT's: {result['differing_tensors']} of {result['tensors']}", end="")
    print(f" by more than 1e-6, {result['tensors_differing_in_a_bit']} in any bit")


if __name__ == "__main__":
    raise SystemExit(main())
