"""What a check of preflight says, and how the lines are shown."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from arena_distill.runtime.errors import (
    EXIT_BAD_INPUT,
    EXIT_BAD_SETTINGS,
    ArenaError,
    InputError,
    SettingsError,
    without_secrets,
)

Level = Literal["ok", "warning", "fix"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "fix")

WIDTH = 120
SUBJECT_WIDTH = 30  # a longer one has a line of its own
_LEVEL_WIDTH = 9


@dataclass(frozen=True)
class Finding:
    """One line: how it stands with something, and what to do about it."""

    topic: str
    level: Level
    subject: str  # what was looked at
    said: str  # what was found
    advice: str = ""  # what to do; empty where all is well
    exit_code: int = EXIT_BAD_INPUT  # where it is to be fixed

    def __post_init__(self) -> None:
        if (self.level == "ok") != (not self.advice):
            raise ValueError(f"a finding that is {self.level} with the advice {self.advice!r}")

    @property
    def document(self) -> dict[str, str]:
        """For programs."""
        return {name: value for name, value in asdict(self).items() if name != "exit_code"}


@dataclass(frozen=True)
class Topic:
    """Makes the findings of one group."""

    name: str
    exit_code: int = EXIT_BAD_INPUT

    def ok(self, subject: str, said: str) -> Finding:
        """All is well."""
        return self._made("ok", subject, said, "")

    def warning(self, subject: str, said: str, advice: str) -> Finding:
        """It will run, and perhaps not as it was meant."""
        return self._made("warning", subject, said, advice)

    def fix(self, subject: str, said: str, advice: str) -> Finding:
        """It will not run, or not give what it should."""
        return self._made("fix", subject, said, advice)

    def of_error(self, subject: str, error: Exception) -> Finding:
        """What an error says: ours name what to do behind an arrow."""
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename is not None else ""
            return self.fix(subject, f"{where}{error.strerror}", "mend the path, its permissions or the disk")
        if not isinstance(error, ArenaError):
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return self.fix(subject, f"this check itself broke ({reason})", "mend that, or report it")
        said, arrow, advice = str(error).rpartition(" -> ")
        finding = self.fix(subject, said if arrow else advice, advice if arrow else "mend it")
        return replace(finding, exit_code=error.exit_code) if isinstance(error, SettingsError | InputError) else finding

    def _made(self, level: Level, subject: str, said: str, advice: str) -> Finding:
        clean = [" ".join(without_secrets(text).split()) for text in (subject, said, advice)]
        return Finding(self.name, level, clean[0], clean[1], clean[2], self.exit_code)


def guarded(topic: Topic, subject: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of one check; if it breaks, those before it and one that says so. Never raises."""
    try:
        yield from check()
    except Exception as error:  # whatever it is: the user came for a list, not for a traceback
        yield topic.of_error(subject, error)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if nothing has to be fixed, 2 if a setting has to be, else 3."""
    codes = {finding.exit_code for finding in findings if finding.level == "fix"}
    return 0 if not codes else EXIT_BAD_SETTINGS if EXIT_BAD_SETTINGS in codes else EXIT_BAD_INPUT


def as_table(findings: Sequence[Finding]) -> str:
    """Lines of at most ``WIDTH`` columns, group by group in the order in which the groups first appear."""
    lines: list[str] = []
    for topic in dict.fromkeys(finding.topic for finding in findings):
        lines += ["", topic] if lines else [topic]
        for finding in findings:
            if finding.topic == topic:
                lines += _rows(finding)
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """How many of each level."""
    ok, warnings, fixes = (sum(finding.level == level for finding in findings) for level in LEVELS)
    return f"{ok} ok, {warnings} warning{'s' * (warnings != 1)}, {fixes} to fix"


def as_json(findings: Sequence[Finding]) -> str:
    """One document for programs."""
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    document = {
        "exit_code": exit_code(findings),
        "counts": counts,
        "findings": [finding.document for finding in findings],
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def _rows(finding: Finding) -> list[str]:
    left = 2 + _LEVEL_WIDTH + SUBJECT_WIDTH + 2
    text = _wrapped(finding.said, WIDTH - left)
    if finding.advice:
        first, *rest = _wrapped(finding.advice, WIDTH - left - 3)
        text += [f"-> {first}", *(f"   {line}" for line in rest)]
    head = f"  {finding.level:<{_LEVEL_WIDTH}}"
    lines: list[str] = []
    subject = finding.subject
    if len(subject) > SUBJECT_WIDTH:
        first, *rest = _wrapped(subject, WIDTH - len(head))
        lines += [head + first, *(" " * len(head) + line for line in rest)]
        head, subject = " " * len(head), ""
    lines.append(f"{head}{subject:<{SUBJECT_WIDTH}}  {text[0]}".rstrip())
    return lines + [" " * left + line for line in text[1:]]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
