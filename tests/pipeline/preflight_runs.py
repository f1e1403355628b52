"""``./pipeline.sh preflight`` in this process, and what it found."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from arena_distill.pipeline.preflight import preflight
from arena_distill.pipeline.variables import environment_of


@dataclass(frozen=True)
class Line:
    """One finding."""

    topic: str
    level: str
    subject: str
    said: str
    advice: str

    @property
    def text(self) -> str:
        return f"{self.subject}: {self.said} -> {self.advice}"


@dataclass(frozen=True)
class Look:
    """What preflight said."""

    code: int
    lines: Sequence[Line]

    def of(self, level: str, topic: str = "") -> list[Line]:
        return [line for line in self.lines if line.level == level and topic in ("", line.topic)]

    def one(self, level: str, topic: str, *words: str) -> Line:
        """The one finding of this level and topic that holds all of these words."""
        found = [line for line in self.of(level, topic) if all(word in line.text for word in words)]
        shown = "\n".join(f"{line.level} {line.topic}: {line.text}" for line in self.lines if line.level != "ok")
        assert len(found) == 1, f"{len(found)} lines with {level}, {topic}, {words}; all but ok:\n{shown}"
        return found[0]

    @property
    def fixes(self) -> list[str]:
        return [line.text for line in self.of("fix")]


LookAround = Callable[..., Look]


def look(*flags: str, **environment: object) -> Look:
    """Run it with these flags and variables (None: not set)."""
    printed = io.StringIO()
    variables = {name: str(value) for name, value in environment.items() if value is not None}
    with environment_of(variables), redirect_stdout(printed):
        code = preflight([*flags, "--json"])
    document = json.loads(printed.getvalue())
    assert document["exit_code"] == code
    return Look(code, [Line(**finding) for finding in document["findings"]])


def shown(*flags: str, **environment: object) -> tuple[int, str]:
    """The same as the table that users see."""
    printed = io.StringIO()
    with environment_of({name: str(value) for name, value in environment.items()}), redirect_stdout(printed):
        code = preflight(list(flags))
    return code, printed.getvalue()


def copy_model(source: Path, target: Path) -> Path:
    """A model of a test's own, to spoil; unchanged files are links to the original."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).symlink_to(file.resolve())
    return target


def rewrite(file: Path, content: bytes | str) -> None:
    """Put other content in the place of a file or link."""
    file.unlink()
    file.write_bytes(content.encode() if isinstance(content, str) else content)
