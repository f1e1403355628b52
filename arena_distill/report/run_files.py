"""The files that a report is made of: read once, remembered with their hashes, and refused where they are broken."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from arena_distill.report.figures import Figure, pointer
from arena_distill.runtime.artifacts import read_manifest_file, sha256_file
from arena_distill.runtime.errors import InputError

_NOTHING = object()


@dataclass(frozen=True)
class JsonFile:
    """A JSON file of the run."""

    path: Path
    name: str  # relative to the output directory, or in full where it is elsewhere
    content: Any

    def get(self, *keys: str | int) -> Any:
        """The value under these keys, or None."""
        found = self._find(keys)
        return None if found is _NOTHING else found

    def figure(self, *keys: str | int) -> Figure | None:
        """The value with its place; None where there is none, or it is null."""
        found = self.get(*keys)
        return None if found is None else Figure(found, f"{self.name}#{pointer(*keys)}")

    def number(self, *keys: str | int) -> Figure | None:
        """The same for a number.

        Raises:
            InputError: it is something else, or not finite.
        """
        found = self.figure(*keys)
        if found is not None and not _is_number(found.value):
            self.refuse(f"{'/'.join(map(str, keys))} is {found.value!r:.40}, not a number")
        return found

    def needed(self, *keys: str | int) -> Figure:
        """As ``figure``, of what must be there.

        Raises:
            InputError: it is not.
        """
        found = self.figure(*keys)
        if found is None:
            self.refuse(f"holds no {'/'.join(map(str, keys))}")
        return found

    def needed_number(self, *keys: str | int) -> Figure:
        """As ``number``, of what must be there.

        Raises:
            InputError: it is not.
        """
        found = self.number(*keys)
        if found is None:
            self.refuse(f"holds no {'/'.join(map(str, keys))}")
        return found

    def refuse(self, problem: str) -> NoReturn:
        """Refuse the file.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.path}: {problem} -> make it again with the step that writes it")

    def _find(self, keys: tuple[str | int, ...]) -> Any:
        found = self.content
        for key in keys:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return _NOTHING
        return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class RunFiles:
    """What was read for one report.

    Args:
        output_dir: where ``model_save/`` and ``sub/`` are.
        page: the report that is to be written; links lead from there.
    """

    output_dir: Path
    page: Path
    read: dict[str, str] = field(default_factory=dict)  # name -> SHA-256 of each file that was read
    _cache: dict[Path, JsonFile] = field(default_factory=dict)

    def json(self, path: Path) -> JsonFile | None:
        """The JSON file at ``path``; None where there is none.

        Raises:
            InputError: it is broken.
        """
        if path in self._cache:
            return self._cache[path]
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text("utf-8-sig"), parse_constant=_refuse_constant)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}) -> make it again with the step that writes it"
            ) from error
        return self._keep(path, content)

    def manifest(self, path: Path) -> JsonFile | None:
        """The manifest at ``path``, as ``json``.

        Raises:
            InputError: it is broken, or none of ours.
        """
        if path in self._cache:
            return self._cache[path]
        content = read_manifest_file(path)
        return None if content is None else self._keep(path, content)

    def _keep(self, path: Path, content: Any) -> JsonFile:
        file = JsonFile(path, self.name(path), content)
        self.read[file.name] = sha256_file(path)
        self._cache[path] = file
        return file

    def name(self, path: Path) -> str:
        """How a report names a file: relative to the output directory, or in full where it is not inside."""
        absolute, root = path.resolve(), self.output_dir.resolve()
        return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()

    def path(self, name: str) -> Path:
        """The file of a name: relative to the output directory, or, as stages write names, to where we are."""
        inside = self.output_dir / name
        return inside if inside.exists() or not Path(name).exists() else Path(name)

    def link(self, name: str) -> str:
        """The URL that leads from the page to a file."""
        here = self.page.parent.resolve()
        return quote(Path(os.path.relpath(self.path(name).resolve(), here)).as_posix())
