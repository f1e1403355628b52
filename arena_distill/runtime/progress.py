"""Progress of long work: rows/s, tokens/s and time left, as a bar on a terminal, as sparse lines in a log file.

And as a heartbeat, for whoever watches the job.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from arena_distill.runtime import heartbeat

FIRST_LINE_SECONDS = 2.0
LINE_SECONDS = 15.0


class Progress:
    """Counts rows and tokens of one task, and shows them on standard error.

    On a terminal a bar (tqdm) is drawn. Elsewhere (a Slurm log) a line is printed after two seconds, then every
    fifteen, and at the end; tasks shorter than two seconds print nothing.

    Args:
        task: what is being done.
        total_rows: rows in all, those of earlier runs included.
        unit: what is counted, if not rows.
        rows_before: done by earlier runs that this one goes on from; they count for the share, not for the rates.
        rows_per_step: of training, whose heartbeat counts steps.
    """

    def __init__(
        self, task: str, total_rows: int, unit: str = "rows", *, rows_before: int = 0, rows_per_step: int = 0
    ) -> None:
        self.task, self.total, self.unit = task, total_rows, unit
        self.rows_before, self.rows_per_step = rows_before, rows_per_step
        self.rows = self.tokens = 0
        self.started = time.monotonic()
        self._started_at = time.time()
        self._next_line = self.started + FIRST_LINE_SECONDS
        self._shown = False
        self._bar = None
        self._silent = os.environ.get("RANK") not in (None, "", "0")  # under torchrun one process speaks for all
        if sys.stderr.isatty() and not self._silent:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_rows, initial=rows_before, desc=task, unit=f" {unit}", dynamic_ncols=True, leave=False
            )
        self.beat()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)

    def update(self, rows: int, tokens: int = 0) -> None:
        """Count finished work."""
        self.rows += rows
        self.tokens += tokens
        if self._bar is not None:
            self._bar.update(rows)
            self._bar.set_postfix_str(f"{self.tokens_per_second:,.0f} tokens/s", refresh=False)
        elif time.monotonic() >= self._next_line and not self._silent:
            self._print_line()
        self.beat()

    def beat(self) -> None:
        """Give a sign of life, also where nothing new is finished."""
        step = self.rows_per_step or 1
        heartbeat.beat(
            self.task,
            (self.rows_before + self.rows) // step,
            self.total // step,
            "steps" if self.rows_per_step else self.unit,
            started=self._started_at,
            rows_per_second=self.rows_per_second,
            tokens_per_second=self.tokens_per_second,
            seconds_left=self.seconds_left,
        )

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return max(time.monotonic() - self.started, 1e-9)

    @property
    def rows_per_second(self) -> float:
        """Rows (or whatever the unit is) finished per second of wall time."""
        return self.rows / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Real tokens, padding not counted, per second of wall time."""
        return self.tokens / self.seconds

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before anything is done."""
        left = self.total - self.rows_before - self.rows
        return left / self.rows_per_second if self.rows else None

    def rates(self) -> str:
        """Both rates in words."""
        tokens = f", {self.tokens_per_second:,.0f} tokens/s" if self.tokens else ""
        return f"{self.rows_per_second:,.1f} {self.unit}/s{tokens}"

    def close(self, finished: bool = True) -> None:
        """Take the bar down, and leave one line with the rates if the task was long enough to have shown any."""
        heartbeat.flush()
        if self._bar is not None:
            self._bar.close()
            self._shown = self.seconds > FIRST_LINE_SECONDS
        if finished and self._shown:
            print(f"{self.task}: {self.rows:,} {self.unit} in {_clock(self.seconds)}, {self.rates()}", file=sys.stderr)

    def _print_line(self) -> None:
        share = 100 * (self.rows_before + self.rows) / max(self.total, 1)
        left = "" if self.seconds_left is None else f", {_clock(self.seconds_left)} left"
        print(f"{self.task}: {share:3.0f} %, {self.rates()}{left}", file=sys.stderr, flush=True)
        self._shown = True
        self._next_line = time.monotonic() + LINE_SECONDS


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"
