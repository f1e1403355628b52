"""The peer of merge.py: PEFT's ``merge_and_unload`` and ``save_pretrained``, in a process of its own.

Run by bench/merge.py in the environment of bench/peers.txt; writes seconds and peak memory as JSON. With ``imports``
nothing is merged, so that the memory of the libraries can be taken off.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

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


def peak_mb() -> float:
    """Highest resident set of this process; the kernel's own mark, as ``getrusage`` inherits the parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status.open() if line.startswith("VmHWM"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    main()
