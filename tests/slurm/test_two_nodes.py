"""Training on two nodes (srun, torchrun, gloo) is training by one process: the same losses, the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.cluster import Cluster
from tests.slurm.faults import STUDENTS, TEACHERS, losses, undo
from tests.slurm.workplace import Workplace


@pytest.mark.fault
@pytest.mark.parametrize(
    ("stage", "prefix", "output"),
    [(TEACHERS, "TEACHER", "small-llama_fold_0_lora"), (STUDENTS, "STUDENT", "distilled_small_fold_0")],
)
def test_two_nodes_train_what_one_process_trains(
    stage: str, prefix: str, output: str, ready: Workplace, cluster: Cluster, tmp_path: Path
) -> None:
    undo(ready, stage, 0)
    both = {}
    for nodes in (1, 2):
        place = ready.copy(tmp_path / f"{nodes} nodes")
        variables = {
            "TEACHER_FOLDS": "0",
            "STUDENT_FOLDS": "0",
            f"{prefix}_PER_DEVICE_BS": str(8 // nodes),
            f"{prefix}_MAX_STEPS": "12",
            f"{prefix}_LORA_DROPOUT": "0",
        }
        job = place.sbatch(f"{stage}.sh", f"--nodes={nodes}", "--ntasks-per-node=1", **variables)
        cluster.wait(job)
        assert cluster.states(job) == ["COMPLETED"], place.logs()
        both[nodes] = place.models / output
        manifest = json.loads((both[nodes] / "manifest.json").read_text("utf-8"))
        assert manifest["processes"] == nodes, place.logs()
    first, second = losses(both[1]), losses(both[2])
    assert len(first) >= 4
    assert max(first) - min(first) > 1e-3, "nothing changes: the curves would agree whatever happened"
    np.testing.assert_allclose(second, first, rtol=1e-4)
    weights, others = (load_file(both[nodes] / "adapter_model.safetensors") for nodes in (1, 2))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
