"""Settings of a run as it was told them, whatever this shell says now."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from arena_distill.runtime.settings import StageSettings, known_variables, parse_settings

Settings = TypeVar("Settings", bound=StageSettings)


@contextmanager
def only(environment: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with these settings of ours and no others, for as long as it lasts."""
    before = dict(os.environ)
    known = known_variables()
    others = {name: value for name, value in before.items() if name.upper() not in known}
    try:
        os.environ.clear()
        os.environ.update(others | dict(environment))
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def settings_of(cls: type[Settings], environment: Mapping[str, str]) -> Settings:
    """A stage's settings, read from these variables (and the profile that they name) alone.

    Raises:
        SettingsError: one of them is unknown or malformed.
    """
    with only(environment):
        return parse_settings(cls, [], program="pipeline.sh", description="")
