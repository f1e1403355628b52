"""One unit of work of a stage: what determines its output, where that goes, and whether it is there already."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.runtime.artifacts import (
    fingerprint,
    is_up_to_date,
    made_before_restart,
    partial_directory,
    read_manifest,
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A piece of work as its manifest will record it."""

    settings: dict[str, Any]  # those that determine the output
    inputs: dict[str, str]  # input -> hash
    final: Path  # the output directory

    @property
    def fingerprint(self) -> str:
        """Hash of settings and inputs."""
        return fingerprint(self.settings, self.inputs)

    def is_up_to_date(self) -> bool:
        """Whether the finished output was made with these settings and inputs."""
        return is_up_to_date(self.final, self.fingerprint)

    def is_wanted(self, again: bool) -> bool:
        """Whether it is to be done: it is not there, or is to be made ``again`` and was not before a requeue."""
        return not self.is_up_to_date() or (again and not made_before_restart(self.final))

    def replaces(self) -> str | None:
        """What a finished output of other settings or inputs, which this job will replace, was made with; or None."""
        manifest = read_manifest(self.final)
        if manifest is None or manifest["fingerprint"] == self.fingerprint:
            return None
        old, new = manifest["settings"], self.settings
        changed = [
            f"{name} {old.get(name, 'unset')} -> {new.get(name, 'unset')}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        before, now = manifest["inputs"], self.inputs
        changed += [f"other {name}" for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        return ", ".join(changed) or "another version"

    @property
    def partial(self) -> Path:
        """Where the work is done; a run with the same settings and inputs goes on with what a killed one left."""
        processes = os.environ.get("WORLD_SIZE") or "1"  # another number takes other steps: no going on between them
        tag = self.fingerprint[:12] + (f"-{processes}p" if processes != "1" else "")
        return partial_directory(self.final, tag)

    def open_partial(self) -> None:
        """Make the directory to work in. To be called under the lock of ``final``."""
        self.partial.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.partial / "model", ignore_errors=True)
        for other in self.final.parent.glob(f"{partial_directory(self.final).name}-*"):
            if other != self.partial and not self.drop_if_empty(other):
                print(f"note: {other} is left from an interrupted run with other settings; delete it when not needed")

    def drop_if_empty(self, partial: Path | None = None) -> bool:
        """Remove a partial directory without any checkpoint in it; we hold the lock, so nobody is working there."""
        partial = partial or self.partial
        if any(partial.glob("training/checkpoint-*")):
            return False
        shutil.rmtree(partial, ignore_errors=True)
        return True
