"""The variables that the stages of a run see: environment over profile, what is ours among them, what a task gets."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import SECRET_VARIABLES
from arena_distill.runtime.settings import PROFILE_VARIABLE, known_variables, profile_entries, profile_path
from arena_distill.runtime.stages import STAGES

_SLURM_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_DEBUG_FLAGS", "SLURM_UMASK")
_OF_ONE_TASK = (
    *("FOLD", "INFER_TRAIN_SHARD_ID", "HEARTBEAT_FILE", "STOP_FILE"),
    *(stage.folds_variable for stage in STAGES.values() if stage.folds_variable),
)
_OF_ONE_SBATCH = ("SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SBATCH_JOB_NAME", "SBATCH_WAIT")


def repository() -> Path:
    """The checkout whose scripts are run: that of the ``pipeline.sh`` that was called, wherever the package is from."""
    return Path(os.environ.get("REPO_ROOT") or Path(__file__).resolve().parents[2])


def settled() -> dict[str, str]:
    """Every variable as a stage would see it: the environment's, else the profile's. Empty ones are none."""
    profile = os.environ.get(PROFILE_VARIABLE, "")
    given = {name: value for name, value in _as_user_gave(os.environ).items() if value}
    return (profile_entries(profile) if profile else {}) | given


def own(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment is a setting of ours, without secrets; sorted by name."""
    known = known_variables() - set(SECRET_VARIABLES)
    return {name: value for name, value in sorted(environment.items()) if value and name.upper() in known}


def unread(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables for sbatch or for a single step that nobody reads, each with the name that it is close to, or none."""
    known = known_variables()
    odd = [name for name, value in environment.items() if value and re.match(r"SBATCH_|STEP\d_", name)]
    odd = [name for name in sorted(odd) if name not in known]
    return [(name, next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)), "")) for name in odd]


def for_stages(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what belongs to the job that the pipeline itself may be, or to one task only."""
    return {
        name: value
        for name, value in _as_user_gave(environment).items()
        if (not name.startswith("SLURM_") or name in _SLURM_KEPT)
        and name not in _OF_ONE_TASK
        and name not in _OF_ONE_SBATCH
    }


def _as_user_gave(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the threads that ``scripts/stage.sh`` chose for the script that we run in: every stage has its own."""
    chosen = environment.get("STAGE_THREADS")
    ours = {"STAGE_THREADS"} | (
        {"OMP_NUM_THREADS"} if chosen and chosen == environment.get("OMP_NUM_THREADS") else set()
    )
    return {name: value for name, value in environment.items() if name not in ours}


@contextmanager
def environment_of(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment with these variables, for as long as it lasts: a task's settings read as it would read them."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def profile_hash(profile: str) -> str:
    """SHA-256 of a profile's file; empty for none."""
    return sha256_file(profile_path(profile)) if profile else ""
