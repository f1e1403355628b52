"""``reproduce.sh``: one command that makes a run again, on a checkout of the revision that it ran with."""

from __future__ import annotations

import importlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from arena_distill.pipeline.run_record import PROFILE_COPY, RunRecord, RunSettingsRecord
from arena_distill.pipeline.variables import repository
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.settings import PROFILE_VARIABLE, known_variables, profile_path
from arena_distill.runtime.stages import RESOURCE_VARIABLES, SETTINGS_CLASSES, STAGES

FILE = "reproduce.sh"

_SCRIPT = """\
#!/usr/bin/env bash
# Makes {name} again, with the steps, settings and threads that it was told (as of {began}).
#   bash reproduce.sh                     what is there, and was made so, stays; the rest is made
#   RUN=another bash reproduce.sh         all of it, beside the first; OUTPUT_DIR=directory: elsewhere
#   bash reproduce.sh --dry-run | --slurm | --no-slurm | --jobs 1          flags go to pipeline.sh
set -euo pipefail
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
for repo in "$PWD" "${{REPO_ROOT:-$PWD}}" {repository}; do
  [ -f "$repo/pipeline.sh" ] && break
done
cd "$repo" # paths in settings are relative to it
[ -f pipeline.sh ] || {{ echo "error: $repo: no pipeline.sh -> run this in a checkout of ours" >&2 && exit 2; }}
{revision}
# What else is set in this shell is not the run's.
unset {prefixes} OMP_NUM_THREADS
unset {names}

{profile}{variables}
export {threads} # threads decide the last bits of a sum

exec bash pipeline.sh {flags} "$@"
"""

_REVISION = """\
if [ "$(git rev-parse HEAD 2>/dev/null)" != {revision} ]; then
  echo "note: made with revision {revision}, and this is another -> git checkout {revision}" >&2
fi
"""
_CHANGED = """\
echo "note: made with changes that are in no revision: the outcome may differ" >&2
"""
_NAMED_PROFILE = """\
export PROFILE={profile}
if [ "$(sha256sum <conf/profiles/{profile}.env)" != "{sha256}  -" ]; then
  echo "error: conf/profiles/{profile}.env has changed since -> put back what is in $here/pipeline/{copy}" >&2
  exit 2
fi
"""
_PROFILE_FILE = """\
export PROFILE=$here/pipeline/{copy} # a copy of {profile}
"""


def write_reproduce(record: RunRecord, told: RunSettingsRecord) -> Path:
    """Write the script beside the run's models, and keep a copy of the profile."""
    if told.profile:
        shutil.copyfile(profile_path(told.profile), record.directory / PROFILE_COPY)
    path = record.model_save / FILE
    write_atomically(path, _script(told))
    path.chmod(path.stat().st_mode | 0o111)
    return path


def _script(told: RunSettingsRecord) -> str:
    prefixes, names = _not_of_the_run()
    return _SCRIPT.format(
        name=f"run {told.run}" if told.run else "the run without a name",
        began=told.began,
        repository=shlex.quote(str(repository())),
        revision=_revision(told.git_revision or ""),
        prefixes=_rows(['"${!' + prefix + '@}"' for prefix in prefixes]),
        names=_rows(names),
        profile=_profile(told),
        variables="\n".join(_export(name, value) for name, value in _kept(told).items()),
        threads=" ".join(f"{STAGES[stage].cpus_variable}={number}" for stage, number in told.threads.items()),
        flags=" ".join(_flags(told)),
    )


def _rows(words: Sequence[str], of: int = 7) -> str:
    """Words over lines that a shell reads as one."""
    return " \\\n  ".join(" ".join(words[start : start + of]) for start in range(0, len(words), of))


def _revision(revision: str) -> str:
    clean = revision.removesuffix("+dirty")
    return (_REVISION.format(revision=clean) if clean else "") + (_CHANGED if clean != revision else "")


def _profile(told: RunSettingsRecord) -> str:
    if not told.profile:
        return ""
    text = _PROFILE_FILE if told.profile.endswith(".env") else _NAMED_PROFILE
    return text.format(profile=told.profile, sha256=told.profile_sha256, copy=PROFILE_COPY)


def _kept(told: RunSettingsRecord) -> Mapping[str, str]:
    said_apart = {PROFILE_VARIABLE, *(stage.cpus_variable for stage in STAGES.values())}
    return {name: value for name, value in told.variables.items() if name not in said_apart}


def _export(name: str, value: str) -> str:
    if _is_open(name):
        return f"export {name}=${{{name}-{shlex.quote(value)}}}"
    return f"export {name}={shlex.quote(value)}"


def _is_open(name: str) -> bool:
    """Whether it says where the output goes, or is of the machine: another may be given."""
    return name in ("RUN", "OUTPUT_DIR", *RESOURCE_VARIABLES)


def _not_of_the_run() -> tuple[list[str], list[str]]:
    """Prefixes and names of all variables that a stage would read, but for those that are open."""
    prefixes: set[str] = set()
    for settings in SETTINGS_CLASSES:
        module, _, cls = settings.partition(":")
        prefixes |= set(getattr(importlib.import_module(module), cls).owned_prefixes)
    prefixes -= {"PIPELINE_"}
    names = (name for name in known_variables() if not _is_open(name) and not name.startswith(tuple(prefixes)))
    return sorted(prefixes), sorted(names)


def _flags(told: RunSettingsRecord) -> list[str]:
    numbers = [STAGES[name].number for name in told.stages]
    skipped = [str(number) for number in range(min(numbers), max(numbers)) if number not in numbers]
    flags = ["--from", str(min(numbers)), "--to", str(max(numbers))]
    if skipped:
        flags += ["--skip", ",".join(skipped)]
    return [*flags, "--folds", ",".join(map(str, told.folds)), *["--slurm"] * told.slurm]
