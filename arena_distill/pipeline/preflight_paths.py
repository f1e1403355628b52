"""Places that the stages write to, and the software that they run on."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

from arena_distill.pipeline.preflight_chain import Chain, hub_home
from arena_distill.pipeline.preflight_finding import Finding, Topic, guarded
from arena_distill.pipeline.variables import repository
from arena_distill.runtime.artifacts import nearest_existing
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.stages import MAKE_FOLDS, POST_PRETRAIN, QUANTIZE

PLACES = Topic("places")
SOFTWARE = Topic("software")

_NEEDED = (
    *("torch", "transformers", "accelerate", "peft", "huggingface-hub", "numpy", "pyarrow", "scipy", "scikit-learn"),
    *("safetensors", "pydantic", "pydantic-settings", "filelock", "tqdm", "jinja2"),
)
_SHOWN = 4


def check_places(chain: Chain) -> Iterator[Finding]:
    """Output directory, logs, scratch, and the hub's home."""
    output = chain.settings.output_dir
    for name, place in (("OUTPUT_DIR", output), ("model_save", output / "model_save"), ("sub", output / "sub")):
        if name == "OUTPUT_DIR" or place.exists():
            yield from guarded(PLACES, name, partial(_writable, name, place))
    yield from guarded(PLACES, "logs", lambda: _writable("logs", repository() / "logs"))
    scratch = chain.variables.get("SCRATCH_BASE", "")
    if scratch and (chain.runs(POST_PRETRAIN) or chain.runs(MAKE_FOLDS)):
        yield from guarded(PLACES, "SCRATCH_BASE", lambda: _scratch(chain, Path(scratch)))
    home = hub_home(chain.variables)
    name = "HF_HOME" if chain.variables.get("HF_HOME") else "HF_HOME (default)"
    yield from guarded(PLACES, name, lambda: _writable(name, home))


def _writable(name: str, place: Path) -> Iterator[Finding]:
    there = nearest_existing(place)
    if not there.is_dir():
        yield PLACES.fix(name, f"{place.resolve()}: {there} is no directory", "choose another place, or move that away")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield PLACES.fix(name, f"{there}: cannot be written to", "choose another place, or mend the permissions")
    else:
        yield PLACES.ok(name, f"{place.resolve()}: " + ("writable" if place.exists() else f"will be made in {there}"))


def _scratch(chain: Chain, place: Path) -> Iterator[Finding]:
    """Scratch is tried with a file that goes again: such disks fill up and fail more often than others."""
    if not place.exists():
        if chain.on_slurm:
            yield PLACES.warning(
                "SCRATCH_BASE", f"{place} is not on this machine; compute nodes may have it",
                "make sure that they do (srun ls), or leave it out",
            )  # fmt: skip
        else:
            yield from _writable("SCRATCH_BASE", place)
        return
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".preflight-") as probe:
            probe.write(b"\0" * 65536)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise InputError(
            f"{place}: a file cannot be written there ({error.strerror}) -> mend it, or choose another SCRATCH_BASE"
        ) from error
    yield PLACES.ok("SCRATCH_BASE", f"{place}: writable, tried with a file")


def check_software(chain: Chain) -> Iterator[Finding]:
    """The virtual environment, its packages against ``constraints.txt``, and sbatch."""
    yield from guarded(SOFTWARE, "Python", lambda: _environment(chain))
    yield from guarded(SOFTWARE, "packages", lambda: _packages(chain))
    if chain.settings.pipeline_slurm and shutil.which("sbatch") is None:
        yield SOFTWARE.fix("sbatch", "is not on the path", "go to a login node of the cluster, or leave out --slurm")


def _environment(chain: Chain) -> Iterator[Finding]:
    root = repository()
    venv = Path(chain.variables.get("VENV_DIR") or root / ".venv")
    python = venv / "bin" / "python"
    shown = ".".join(map(str, sys.version_info[:3]))
    if python.exists():
        yield SOFTWARE.ok("Python", f"{shown}; the stages take {venv}")
    else:
        yield SOFTWARE.warning(
            "Python", f"no environment at {venv}: the stages take the Python on the path, {sys.executable} ({shown})",
            "make setup, or set VENV_DIR in conf/cluster.sh",
        )  # fmt: skip


def _packages(chain: Chain) -> Iterator[Finding]:
    about = (one.metadata for one in metadata.distributions())
    installed = {_plain(one["Name"]): one["Version"] for one in about if one["Name"] and one["Version"]}
    if missing := [name for name in _NEEDED if name not in installed]:
        yield SOFTWARE.fix("packages", f"{', '.join(missing)} are missing", "make setup")
    wanted = _constraints(repository() / "constraints.txt")
    other = [
        f"{name} {installed[name]} (not {version})"
        for name, version in wanted.items()
        if name in installed and installed[name].partition("+")[0] != version
    ]
    if other:
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        yield SOFTWARE.warning(
            "packages", f"other versions than were tried together: {', '.join(other[:_SHOWN])}{more}",
            "make setup installs those of constraints.txt",
        )  # fmt: skip
    elif not missing:
        yield SOFTWARE.ok("packages", f"those of constraints.txt, torch {installed['torch']}")
    if chain.runs(QUANTIZE) and "gptqmodel" not in installed:
        method = chain.variables.get("QUANT_METHOD", "auto")
        if method == "gptq" or (method == "auto" and chain.variables.get("QUANT_BITS") == "4"):
            yield SOFTWARE.fix("packages", "step 7 needs GPTQModel", "pip install 'arena-distill[quantize]'")
        elif method == "auto":
            yield SOFTWARE.warning(
                "packages", "GPTQModel is missing: step 7 stops where the student is a decoder",
                "pip install 'arena-distill[quantize]', or QUANT_METHOD=int8",
            )  # fmt: skip


def _constraints(file: Path) -> Mapping[str, str]:
    """Name -> version of the lines NAME==VERSION."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError:
        return {}
    pins = (re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;#]+).*", line.strip()) for line in lines)
    return {_plain(pin[1]): pin[2] for pin in pins if pin}


def _plain(name: str) -> str:
    """Names of packages are alike whatever their case and hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()
