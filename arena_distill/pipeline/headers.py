"""What a stage script asks of Slurm in its header."""

from __future__ import annotations

import re
from pathlib import Path


def header(script: Path) -> dict[str, str]:
    """Long options of the ``#SBATCH`` lines that sbatch reads, which are those before the first command."""
    options: dict[str, str] = {}
    for line in script.read_text("utf-8").splitlines():
        if found := re.match(r"#SBATCH\s+--([\w-]+)(?:[=\s]\s*(\S+))?", line):
            options[found[1]] = found[2] or ""
        elif line.strip() and not line.startswith("#"):
            break
    return options
