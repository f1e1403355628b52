"""Conversions that a signal stops end at once and leave nothing; what a kill leaves goes with the next command."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arena_distill.conversion import average as average_module
from arena_distill.runtime.artifacts import locked, partial_directory
from arena_distill.runtime.errors import EXIT_REQUEUE, run_command
from tests.conversion.average_runs import average, avg_lora, copy_of, merged_model, quick
from tests.conversion.quantize_cases import make_student, quantize

WEIGHTS = {"avg_lora": "adapter_model.safetensors", "final_merged_model": "model.safetensors"}


def weights(root: Path) -> dict[str, bytes]:
    """Of both outputs of step 6."""
    return {name: (root / "model_save" / name / file).read_bytes() for name, file in WEIGHTS.items()}


def left(directory: Path) -> list[str]:
    """What is hidden, but for locks."""
    return [path.name for path in directory.glob(".*") if not path.name.endswith(".lock")]


def test_step_6_stops_at_once_each_time_and_makes_the_same_in_the_end(
    averaged: Path, root: Path, small_test_csv: Path
) -> None:
    settings = quick(root, small_test_csv)
    for moment in ("_compare", "_publish_average", "_prove"):
        work = getattr(average_module, moment)

        def signalled(*args: Any, work: Callable[..., Any] = work) -> Any:
            done = work(*args)
            os.kill(os.getpid(), signal.SIGTERM)
            return done

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(average_module, moment, signalled)
            assert run_command(lambda: average(settings)) == EXIT_REQUEUE
        assert avg_lora(root).exists() == (moment != "_compare") and not merged_model(root).exists()
        assert left(root / "model_save") == []
    average(settings)
    assert weights(root) == weights(averaged)


def test_what_a_kill_of_step_6_left_beside_finished_outputs_goes_unless_somebody_works_there(
    averaged: Path, small_test_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(averaged, tmp_path / "root")
    places = [partial_directory(avg_lora(root)), partial_directory(avg_lora(root), "compared")]
    places.append(partial_directory(merged_model(root)))
    for place in places:
        place.mkdir()
        (place / "half").touch()
    with locked(avg_lora(root)):
        average(quick(root, small_test_csv))
    assert all((place / "half").is_file() for place in places)
    average(quick(root, small_test_csv))
    assert left(root / "model_save") == []
    assert capsys.readouterr().out.count("up to date") == 4


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")
def test_step_7_ends_the_process_that_quantizes_and_leaves_nothing(backbones: Path, tmp_path: Path) -> None:
    student = make_student(backbones / "llama", tmp_path / "student")
    seen, main = [], Path(f"/proc/self/task/{threading.get_native_id()}/children")

    def signal_when_it_quantizes() -> None:
        while not seen:
            for child in main.read_text().split():
                if "gptq_worker" in (command := Path(f"/proc/{child}/cmdline")).read_text():
                    seen.append(command)
                    os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)

    threading.Thread(target=signal_when_it_quantizes, daemon=True).start()
    assert run_command(lambda: quantize(student, tmp_path / "out")) == EXIT_REQUEUE
    assert seen and not seen[0].exists()
    assert left(tmp_path) == [] and not (tmp_path / "out").exists()
