"""What the measurements share: ways that take turns, peers in an environment of their own, results and their table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from machine import machine

from arena_distill.runtime.artifacts import git_revision
from arena_distill.runtime.cores import usable_cores

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a network

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS_VARIABLE = "ARENA_BENCH_RESULTS"  # run.py collects quick looks elsewhere, so that they replace no figures
RESULTS = Path(__file__).parent / "results"
PEER_PYTHON = REPOSITORY / ".venv-bench" / "bin" / "python"
PACKAGES = ("torch", "transformers", "peft", "numpy", "pyarrow")


@dataclass(frozen=True)
class Row:
    """One line of the table: how we compare with a peer.

    ``ratio`` is peer's cost by ours, so that more is better; where there is no peer it is a figure of its own in
    ``unit``, and with ``at_most`` less is better. None: could not be measured, and ``detail`` says why.
    """

    question: str
    peer: str
    ratio: float | None
    target: float | None
    equal: bool
    detail: str = ""
    unit: str = "×"
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether results are equal and the target is kept; None without a target."""
        if self.target is None and self.equal:
            return None
        if self.ratio is None or self.target is None or not self.equal:
            return False
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


@dataclass(frozen=True)
class Timed:
    """A result whose seconds were taken elsewhere, in a peer's process."""

    result: Any
    seconds: float


@dataclass
class Measured:
    """Seconds of each way in each repeat, and what each way returned last."""

    seconds: dict[str, list[float]]
    results: dict[str, Any] = field(default_factory=dict)

    def median(self, way: str) -> float:
        """Seconds of one way."""
        return float(np.median(self.seconds[way]))

    def ratio(self, peer: str, ours: str) -> float:
        """How many times as long the peer takes: the median of the ratios within a repeat."""
        return self.ratios(peer, ours)["median"]

    def ratios(self, peer: str, ours: str) -> dict[str, float]:
        """Median, least and largest of the repeats' ratios."""
        values = np.divide(self.seconds[peer], self.seconds[ours])
        return {
            "median": round(float(np.median(values)), 3),
            "min": round(float(values.min()), 3),
            "max": round(float(values.max()), 3),
        }


def measure(
    ways: Mapping[str, Callable[[], Any]], repeats: int, warm_up: Callable[[], Any] | None = None, quiet: bool = False
) -> Measured:
    """Time several ways of doing the same, each once a repeat, in another order each time.

    Args:
        ways: what to time, by name; one that returns ``Timed`` brings its seconds along.
        repeats: how often.
        warm_up: runs before, untimed; by default every way runs once more. Give a smaller task where that takes long.
        quiet: print nothing.
    """
    if warm_up is not None:
        warm_up()
    else:
        for way in ways.values():
            way()
    measured = Measured({name: [] for name in ways})
    names = list(ways)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            result = ways[name]()
            seconds = time.perf_counter() - started
            if isinstance(result, Timed):
                result, seconds = result.result, result.seconds
            measured.seconds[name].append(seconds)
            measured.results[name] = result
        if not quiet:
            times = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in measured.seconds.items())
            print(f"repeat {repeat + 1}: {times}", flush=True)
    return measured


class Peer:
    """A peer's script at work in ``.venv-bench``, which takes turns with us.

    The script does what a line of its standard input names and answers with one line of JSON (``reply``); it ends when
    its input does. What else it prints is shown.

    Args:
        script: file name in this folder, ``peer_….py``.
        arguments: of the script.
    """

    def __init__(self, script: str, *arguments: str | Path) -> None:
        command = [str(peer_python()), str(Path(__file__).parent / script), *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=peer_env()
        )

    def __call__(self, line: str) -> dict[str, Any]:
        """Have it do one thing; its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        for printed in self._process.stdout:
            if printed.startswith("{"):
                answer: dict[str, Any] = json.loads(printed)
                return answer
            print(printed, end="")
        raise SystemExit(f"the peer ended with exit code {self._process.wait()} at {line!r}")

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def run_peer(script: str, *arguments: str | Path) -> None:
    """Run a peer's script to its end, in the environment of peers; what it has to say stands in files it writes."""
    subprocess.run(
        [str(peer_python()), str(Path(__file__).parent / script), *map(str, arguments)], check=True, env=peer_env()
    )


def peer_python() -> Path:
    """Python of the environment with the peers."""
    if not PEER_PYTHON.is_file():
        raise SystemExit("no .venv-bench -> `make bench` makes it, or `make .venv-bench/.ready`")
    return PEER_PYTHON


def peer_env() -> dict[str, str]:
    """Environment of a peer: no network, nothing of ours on the path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def peer_version(package: str) -> str:
    """Version of a package in the environment of peers."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run(
        [str(peer_python()), "-c", code], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows ``--quick``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look in seconds, whose figures mean little")
    return parser


def finish(name: str, result: Mapping[str, Any], rows: Sequence[Row], quick: bool = False) -> None:
    """Print the table, and write it with everything measured unless this was a quick look."""
    print_rows(rows)
    write_result(name, {**result, "rows": [table_line(row) for row in rows]}, quick)


def write_result(name: str, result: Mapping[str, Any], quick: bool = False) -> None:
    """Write ``results/NAME.json`` with what it was measured on; a quick look writes only where run.py collects it."""
    folder = os.environ.get(RESULTS_VARIABLE, "")
    if quick and not folder:
        return
    file = Path(folder or RESULTS) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**result, **circumstances(), "quick": quick}, indent=2) + "\n", "utf-8")
    if not folder:
        print(f"written to {file.relative_to(REPOSITORY)}")


def circumstances() -> dict[str, Any]:
    """Machine, versions, revision and date of a measurement."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "threads": threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "machine": machine(),
        "versions": {"python": sys.version.split()[0], **versions},
        "git_revision": git_revision(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def threads() -> int:
    """Threads of a matrix product: torch's, if this process uses torch, else those it would take."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    return int(os.environ.get("OMP_NUM_THREADS") or usable_cores())


def table_line(row: Row) -> dict[str, Any]:
    """A row of the table for JSON."""
    return {**asdict(row), "reached": row.reached}


def print_rows(rows: Sequence[Row]) -> None:
    """The table."""
    print("\n" + table(rows))


def table(rows: Sequence[Row]) -> str:
    """question | peer | ratio | target | equal results | reached, and below each line what it rests on."""
    lines = [("question", "peer", "measured", "target", "equal", "reached")]
    for row in rows:
        bound = "" if row.target is None else f"{'≤ ' if row.at_most else ''}{row.target:g} {row.unit}"
        figure = "-" if row.ratio is None else f"{row.ratio:.2f} {row.unit}"
        said = {True: "yes", False: "NO", None: "-"}
        lines.append((row.question, row.peer, figure, bound, said[row.equal], said[row.reached]))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    out = []
    for number, line in enumerate(lines):
        first, second, *rest = line
        cells = [first.ljust(widths[0]), second.ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[2:], strict=True)]
        out.append("  ".join(cells).rstrip())
        if number and rows[number - 1].detail:
            out.append("    " + rows[number - 1].detail)
    return "\n".join(out)
