"""Typed settings from the command line, the environment, a profile file and defaults, in that order of precedence.

A stage's settings are one class. Each field is a flag (``--student-lr``), an environment variable (``STUDENT_LR``)
and a line of ``--help``. A misspelt flag, or a variable that begins like one of ours but is none, is refused with the
nearest name: a setting that silently does nothing costs a night on the cluster.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from arena_distill.runtime.errors import SECRET_VARIABLES, SettingsError
from arena_distill.runtime.interruption import checkpointing
from arena_distill.runtime.stages import SCRIPT_VARIABLES, SETTINGS_CLASSES

PROFILE_VARIABLE = "PROFILE"
PROFILE_DIRECTORY = Path(__file__).resolve().parents[2] / "conf" / "profiles"

Settings = TypeVar("Settings", bound="StageSettings")


class StageSettings(BaseSettings):
    """Base of every stage's settings: fields with a type, a bound, a unit and one line of help."""

    model_config = SettingsConfigDict(
        extra="ignore",  # a profile also holds other stages' variables; flags and variables are checked by name below
        case_sensitive=False,
        frozen=True,
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    owned_prefixes: ClassVar[tuple[str, ...]] = ()
    """Prefixes of environment variables that belong to this project: an unknown name under one is an error."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line (added by ``parse_settings``), then environment, then profile."""
        profile = _profile_file()
        sources = (init_settings, env_settings)
        return (*sources, DotEnvSettingsSource(settings_cls, env_file=profile)) if profile else sources


def parse_settings(cls: type[Settings], argv: Iterable[str], *, program: str, description: str) -> Settings:
    """Resolve the settings of one run.

    Args:
        cls: the stage's settings class.
        argv: the command line without the program's name.
        program: name shown in the usage line.
        description: first lines of ``--help``.

    Raises:
        SettingsError: an unknown or malformed flag, variable or profile entry.
        SystemExit: after ``--help``.
        Interrupted: a signal came meanwhile. It waits: raised inside, pydantic would take it for a value refused.
    """
    with checkpointing():
        return _parse(cls, argv, program, description)


def _parse(cls: type[Settings], argv: Iterable[str], program: str, description: str) -> Settings:
    _refuse_unknown_variables(cls, os.environ, "environment")
    if profile := _profile_file():
        _refuse_unknown_variables(cls, _profile_entries(profile), str(profile))
        _refuse_unknown_entries(cls, _profile_entries(profile), profile)
    parser = _Parser(prog=program, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    try:
        source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
            cls, cli_prog_name=program, root_parser=parser, cli_parse_args=list(argv)
        )
        return cls(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors())) from error


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=118)

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        return text.replace(" (default: )", "").replace(" (required)", "")


class _Parser(argparse.ArgumentParser):
    """Argparse that refuses with our error, and names the nearest flag."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        for word in message.partition("unrecognized arguments:")[2].split():
            if word.startswith("-"):
                raise SettingsError(f"unknown flag {word.split('=')[0]}{_nearest(word.split('=')[0], known)}")
        raise SettingsError(f"{message} -> see --help")

    def format_usage(self) -> str:
        return f"usage: {self.prog} [--flag value ...]\n"

    def format_help(self) -> str:
        _, _, body = super().format_help().partition("\n\n")
        return f"{self.format_usage()}\n{body.lstrip()}"


def profile_value(profile: str, name: str) -> str:
    """What a profile says of one variable; empty if nothing.

    Raises:
        SettingsError: there is no such profile, or it cannot be read.
    """
    return _profile_entries(profile_path(profile)).get(name) or ""


def profile_entries(profile: str) -> dict[str, str]:
    """All lines of a profile, empty ones left out: they set nothing.

    Raises:
        SettingsError: there is no such profile, or it cannot be read.
    """
    return {name: value for name, value in _profile_entries(profile_path(profile)).items() if value}


def known_variables() -> set[str]:
    """Every setting that a stage, its script or the pipeline reads, by the name of its variable."""
    return {PROFILE_VARIABLE, *SCRIPT_VARIABLES} | _variables_of_all_stages()


def _profile_file() -> Path | None:
    name = os.environ.get(PROFILE_VARIABLE, "")
    return profile_path(name) if name else None


def profile_path(name: str) -> Path:
    """The file of a profile.

    Raises:
        SettingsError: there is none of that name.
    """
    path = Path(name) if name.endswith(".env") else PROFILE_DIRECTORY / f"{name}.env"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILE_DIRECTORY.glob("*.env"))) or "none yet"
        raise SettingsError(
            f"{PROFILE_VARIABLE}={name}: no such profile -> use one of: {known}, or a path to a .env file"
        )
    return path


def _profile_entries(path: Path) -> Mapping[str, str | None]:
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a readable profile ({error}) -> write lines like STUDENT_EPOCHS=2") from error
    for binding in bindings:
        if binding.error:
            raise SettingsError(f"{path}, line {binding.original.line}: not NAME=value -> correct or remove the line")
    entries = {binding.key: binding.value for binding in bindings if binding.key}
    if secrets := sorted({name.upper() for name in entries} & set(SECRET_VARIABLES)):
        raise SettingsError(f"{path}: holds {secrets[0]} -> keep secrets in your environment, and out of files")
    return entries


def _refuse_unknown_variables(cls: type[StageSettings], variables: Iterable[str], where: str) -> None:
    own = {name.upper() for name in cls.model_fields}
    ours = [name for name in sorted(variables) if name.upper().startswith(cls.owned_prefixes)]
    if all(name.upper() in own for name in ours):
        return
    known = own | _variables_of_all_stages()  # what another stage reads under the same prefix is no misspelling
    for name in ours:
        if name.upper() not in known:
            raise SettingsError(f"unknown variable {name} in the {where}{_nearest(name.upper(), known)}")


def _refuse_unknown_entries(cls: type[StageSettings], entries: Iterable[str], profile: Path) -> None:
    """A profile serves all stages: a line that none of them reads is a misspelling, and better found now than then."""
    known = {*SCRIPT_VARIABLES, *(field.upper() for field in cls.model_fields)} | _variables_of_all_stages()
    for entry in entries:
        if entry.upper() not in known:
            raise SettingsError(f"unknown variable {entry} in {profile}{_nearest(entry.upper(), known)}")


def _variables_of_all_stages() -> set[str]:
    known: set[str] = set()
    for name in SETTINGS_CLASSES:
        module, _, cls = name.partition(":")
        known |= {field.upper() for field in getattr(importlib.import_module(module), cls).model_fields}
    return known


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" -> did you mean {matches[0]}?" if matches else " -> see --help for the names"


def _explain(problem: Any) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    flag = f"--{name.replace('_', '-')} (or {name.upper()})" if name else "settings"
    given = f", not {problem['input']!r}" if isinstance(problem["input"], str | int | float) else ""
    message = str(problem["msg"])
    message = message.removeprefix("Value error, ")
    if not message[1:2].isupper():  # the name of a variable stays as it is
        message = message[:1].lower() + message[1:]
    return f"{flag}: {message}{given}"
