"""A run's status as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from arena_distill.pipeline.task_progress import TaskProgress
from arena_distill.pipeline.task_status import TaskStatus

HEADER = ("stage", "task", "state", "elapsed", "progress", "output", "job", "log, or why there is none")


def format_table(tasks: Sequence[TaskStatus]) -> str:
    """One line a task; below it, where something is wrong or waited for, why."""
    cells = [_cells(task, first=_is_first(tasks, number)) for number, task in enumerate(tasks)]
    widths = [max(len(row[column]) for row in (HEADER, *cells)) for column in range(len(HEADER))]
    lines = [_line(HEADER, widths)]
    for task, row in zip(tasks, cells, strict=True):
        lines.append(_line(row, widths))
        lines += [f"    {said}" for said in _remarks(task)]
    return "\n".join(lines)


def _is_first(tasks: Sequence[TaskStatus], number: int) -> bool:
    return number == 0 or tasks[number - 1].stage != tasks[number].stage


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cells(task: TaskStatus, *, first: bool) -> tuple[str, ...]:
    restarts = f" ({task.restarts} requeue{'s' * (task.restarts > 1)})" if task.restarts else ""
    return (
        task.stage if first else "",
        f"{task.array} {task.task}" if task.task is not None else task.array or "",
        task.state + restarts,
        clock(task.elapsed_seconds),
        progress_words(task.progress, running=task.state == "running"),
        task.artifact.state,
        task.job,
        short(task.log) or task.reason,
    )


def _remarks(task: TaskStatus) -> Iterator[str]:
    if task.reason and task.log:
        yield task.reason
    if task.artifact.detail:
        yield f"output: {task.artifact.detail}"


def progress_words(progress: TaskProgress | None, *, running: bool) -> str:
    """How far: 240/1,000 steps, 2.1/s, 6:02 left."""
    if progress is None:
        return ""
    words = [f"{progress.done:,}/{progress.total:,} {progress.unit}".rstrip()]
    if running and progress.silent:
        words.append(f"no sign for {clock(progress.age_seconds)}")
    elif running:
        if progress.rows_per_second:
            words.append(f"{progress.rows_per_second:,.3g} {'rows' if progress.unit == 'steps' else progress.unit}/s")
        if progress.seconds_left is not None:
            words.append(f"{clock(progress.seconds_left)} left")
    return ", ".join(words)


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; days before them where there are any."""
    if seconds is None:
        return ""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    return f"{f'{days}-' if days else ''}{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"


def short(path: str) -> str:
    """A path as seen from here, where that is below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if path and Path(path).is_relative_to(here) else path
