"""Tiny checkpoints as artifacts: made whole, with a manifest, and only where they are not there already."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

from arena_distill.data.find_file import find_file
from arena_distill.data.loading import load_texts
from arena_distill.data.prompts import texts_of
from arena_distill.data.reading import data_sha256
from arena_distill.data.records import Rows
from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.tiny import DECODERS, TinySize, families, make_tiny_model
from arena_distill.runtime import heartbeat
from arena_distill.runtime.artifacts import locked, publish, recover, require_replaceable, write_manifest
from arena_distill.runtime.cores import usable_cores
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.interruption import checkpointing
from arena_distill.runtime.job import Job

STAGE = "make_tiny_models"
_MAKING_SECONDS = 3600  # that another run may take to make what we need, and then need not make


@dataclass(frozen=True)
class TinyOrder:
    """Which checkpoints to make; the fields are the flags of ``scripts/make_tiny_models.py``."""

    texts: str
    out_dir: Path
    families: str
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    pretrain_epochs: int
    seed: int

    def check(self) -> None:
        """Refuse what no checkpoint can be made of.

        Raises:
            SettingsError: names the flag.
        """
        if unknown := {name for name, _ in self.chosen} - set(families()):
            raise SettingsError(f"--families: unknown {', '.join(sorted(unknown))} -> use {', '.join(families())}")
        for name, least in (("hidden", 1), ("layers", 1), ("heads", 1), ("vocabulary", 1), ("positions", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"--{name}: must be at least {least}, not {getattr(self, name)}")
        if self.pretrain_epochs < 0:
            raise SettingsError(f"--pretrain-epochs: must be at least 0, not {self.pretrain_epochs}")
        for _, hidden in self.chosen:
            if hidden < 1 or hidden % (2 * self.heads):
                raise SettingsError(f"--hidden: must be a multiple of twice --heads ({2 * self.heads}), not {hidden}")

    @property
    def chosen(self) -> tuple[tuple[str, int], ...]:
        """Family names, each with its hidden size: ``llama`` has the common one, ``bert:64`` its own.

        Raises:
            SettingsError: what stands behind a colon is no number.
        """
        if self.families == "all":
            return tuple((name, self.hidden) for name in families())
        pairs = [part.strip().partition(":") for part in self.families.split(",")]
        if odd := [number for _, colon, number in pairs if colon and not number.isdecimal()]:
            raise SettingsError(f"--families: {odd[0]!r} is no hidden size -> use names like llama or bert:64")
        return tuple((name, int(number) if colon else self.hidden) for name, colon, number in pairs)

    def job(self, family: str, hidden: int) -> Job:
        """One checkpoint to be made."""
        epochs = self.pretrain_epochs if family in DECODERS else 0
        size = TinySize(hidden, self.layers, self.heads, self.vocabulary, self.positions)
        settings = {"family": family, "size": vars(size), "seed": self.seed, "pretrain_epochs": epochs}
        inputs = {"texts": data_sha256(find_file(self.texts, "train", "--texts"))}
        return Job(settings=settings, inputs=inputs, final=self.out_dir / family)


def make_tiny_checkpoints(order: TinyOrder) -> None:
    """Make the checkpoints that are not there yet.

    Raises:
        SettingsError: dimensions that do not fit together, or an unknown family.
        InputError: there are no texts, or a directory holds something else.
    """
    order.check()
    waiting = []
    for family, hidden in order.chosen:
        job = order.job(family, hidden)
        require_replaceable(job.final, STAGE)
        if job.is_up_to_date():
            print(f"{job.final}: up to date")
        else:
            waiting.append(job)
    if waiting:
        _make_all(order, waiting, load_texts(order.texts))


def _make_all(order: TinyOrder, jobs: list[Job], rows: Rows) -> None:
    """Side by side, each with its share of the cores: models so small gain little from a second one."""
    cores = usable_cores()
    processes = min(cores, len(jobs))
    if processes == 1:
        for job in jobs:
            _make(order, job, rows)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _without_heartbeat) as pool:
        try:
            for done in [pool.submit(_make, order, job, rows, cores // processes) for job in jobs]:
                done.result()
                heartbeat.keep(1)
        except BaseException:
            for process in active_children():  # else the pool waits for what they are making
                process.terminate()
            raise


def _without_heartbeat() -> None:
    """There is one a job, and the process that hands out the work has it."""
    os.environ.pop(heartbeat.HEARTBEAT_FILE, None)


def _make(order: TinyOrder, job: Job, rows: Rows, threads: int = 0) -> None:
    quiet_libraries("training" if job.settings["pretrain_epochs"] else "models")
    if threads:
        import torch

        torch.set_num_threads(threads)
    with locked(job.final, wait_seconds=_MAKING_SECONDS):
        recover(job.final)
        if job.is_up_to_date():
            print(f"{job.final}: made by another job meanwhile")
        else:
            _make_alone(order, job, rows)


def _make_alone(order: TinyOrder, job: Job, rows: Rows) -> None:
    started = time.time()
    shutil.rmtree(job.partial, ignore_errors=True)
    directory = job.partial / "model"
    directory.mkdir(parents=True)
    texts = [text for column in texts_of(rows) for text in column.to_pylist()]
    family, epochs = job.settings["family"], job.settings["pretrain_epochs"]
    parameters = make_tiny_model(family, texts, directory, TinySize(**job.settings["size"]), order.seed)
    trained = ""
    if epochs:
        from arena_distill.training.tiny_pretrain import pretrain_tiny

        loss = pretrain_tiny(directory, rows, epochs, order.seed)
        trained = f", pretrained to a loss of {loss:.2f} nats a token"
    write_manifest(directory, stage=STAGE, settings=job.settings, inputs=job.inputs, started=started)
    with checkpointing():
        publish(directory, job.final)
        shutil.rmtree(job.partial)
    print(f"{job.final}: {parameters:,} parameters{trained}")
