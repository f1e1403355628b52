"""The command line of ``./pipeline.sh``: what it says becomes environment, where the stages read it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

from arena_distill.pipeline.plan import family_variables
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.variables import settled
from arena_distill.runtime.settings import PROFILE_VARIABLE, parse_settings

OF_ONE_COMMAND = tuple(
    name.upper() for name in PipelineSettings.model_fields if name.startswith("pipeline_") and name != "pipeline_sbatch"
)
"""Settings that say what this command is to do, not what the run is."""


def parse(argv: Sequence[str], description: str = "") -> PipelineSettings:
    """Settings of the pipeline. Sets the environment accordingly.

    Args:
        argv: the command line without the program's name and the verb.
        description: first lines of ``--help``.

    Raises:
        SettingsError: an unknown or malformed flag, variable or profile entry.
    """
    if profile := _profile_flag(argv):
        os.environ[PROFILE_VARIABLE] = profile
    settings = parse_settings(PipelineSettings, argv, program="pipeline.sh", description=description)
    before = settled()
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if name.upper() not in OF_ONE_COMMAND and before.get(name.upper(), "") != text:
            os.environ[name.upper()] = text
    os.environ.update(family_variables(settings))
    return settings


def _profile_flag(argv: Sequence[str]) -> str:
    for word, after in pairwise([*argv, ""]):
        if word == "--profile":
            return after
        if word.startswith("--profile="):
            return word.partition("=")[2]
    return ""
