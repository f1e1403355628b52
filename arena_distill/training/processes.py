"""Several processes that train one model (``torchrun``): who speaks and writes, and waiting for each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from arena_distill.runtime.artifacts import locked
from arena_distill.runtime.cores import usable_cores

T = TypeVar("T")


def process_count() -> int:
    """How many processes train together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def local_rank() -> int:
    """Number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def is_main_process() -> bool:
    """Whether this process prints, and writes what all have made."""
    return int(os.environ.get("RANK") or 0) == 0


def use_all_cores() -> None:
    """For work that the main process does alone: torchrun leaves each process one core.

    A process that trains by itself has its threads already; others beside it may have the rest of the cores.
    """
    if process_count() == 1:
        return
    import torch

    torch.set_num_threads(usable_cores())


def wait_for_all() -> None:
    """Return when every process has come here. Only after ``training_arguments`` has joined them."""
    if process_count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def same_for_all(value: T) -> T:
    """What the main process has, in every process."""
    if process_count() == 1:
        return value
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())
    holder = [value]
    broadcast_object_list(holder)
    return holder[0]


def any_process(wish: bool) -> bool:
    """Whether any of the processes, all of which must ask, has the wish."""
    if process_count() == 1:
        return wish
    import torch
    from accelerate import PartialState

    wishes = torch.tensor(int(wish), device=PartialState().device)
    torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
    return bool(wishes.item())


def say(text: object) -> None:
    """Print once, not once a process."""
    if is_main_process():
        print(text)


@contextmanager
def locked_by_main(output: Path) -> Iterator[None]:
    """The main process holds the lock of ``output``; torchrun ends the others if it does not get it."""
    with locked(output) if is_main_process() else nullcontext():
        yield
