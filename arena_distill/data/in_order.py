"""Several threads on the parts of a stream, with results and errors as if one part were done after the other."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from arena_distill.runtime.cores import usable_cores

MAX_THREADS = 4  # each holds a part of the stream in memory, and reading the stream keeps no more of them busy

Part = TypeVar("Part")
Result = TypeVar("Result")


def thread_count() -> int:
    """``OMP_NUM_THREADS``, else the cores that this process may use; at most ``MAX_THREADS``."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(given) if given.isdecimal() and int(given) else usable_cores(), MAX_THREADS)


def in_order(
    work: Callable[[Part], Result], parts: Iterator[Part], alone: Callable[[Part], bool] = lambda part: False
) -> Iterator[Result]:
    """``work`` of each part, in the order of ``parts``, while later parts are being read and worked on.

    What is raised is what one thread alone would meet first, whether in reading a part or in working on one.

    Args:
        work: called in several threads at once.
        parts: read in the thread that asks for the results, at most one part a thread and one more ahead of them.
        alone: parts to be worked on when all before them are done, and before the next one is read.
    """
    threads = thread_count()
    if threads == 1:
        yield from map(work, parts)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads + 1, "parts") as pool:  # one of them waits for the interpreter's lock
        try:
            while True:
                try:
                    part = next(parts)
                except StopIteration:
                    break
                except Exception:
                    yield from _results(waiting)  # a part before this one may have failed
                    raise
                if alone(part):
                    yield from _results(waiting)
                    yield work(part)
                    continue
                waiting.append(pool.submit(work, part))
                del part
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            yield from _results(waiting)
        finally:
            for future in waiting:
                future.cancel()


def _results(waiting: deque[Future[Result]]) -> Iterator[Result]:
    while waiting:
        yield waiting.popleft().result()
