"""The peer of merge.py: PEFT's ``merge_and_unload`` and ``save_pretrained``, in a process of its own.

Run by bench/merge.py in the environment of bench/peers.txt; writes seconds and peak memory as JSON. With ``imports``
nothing is merged, so that the memory of the libraries can be taken off.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from memory import peak_mb
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401  (loaded lazily otherwise)


def main() -> None:
    what, file_bytes, out = sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    directory = Path(sys.argv[1])
    started = time.perf_counter()
    if what == "merge":
        base = AutoModelForCausalLM.from_pretrained(directory / "base")
        merged = PeftModel.from_pretrained(base, str(directory / "adapter")).merge_and_unload()
        merged.save_pretrained(directory / "peft", max_shard_size=file_bytes)
    out.write_text(json.dumps({"seconds": round(time.perf_counter() - started, 2), "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
