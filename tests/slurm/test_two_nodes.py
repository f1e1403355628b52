"""Training on two nodes (srun, torchrun, gloo) is training by one process: the same losses, the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.cluster import Cluster
from tests.slurm.faults import TEACHERS, losses, undo
from tests.slurm.workplace import Workplace


@pytest.mark.fault
def test_two_nodes_train_what_one_process_trains(ready: Workplace, cluster: Cluster, tmp_path: Path) -> None:
    undo(ready, TEACHERS, 0)
    places = {nodes: ready.copy(tmp_path / f"{nodes} nodes") for nodes in (1, 2)}
    jobs = {}
    for nodes, place in places.items():
        variables = {
            "TEACHER_FOLDS": "0",
            "TEACHER_PER_DEVICE_BS": str(8 // nodes),
            "TEACHER_MAX_STEPS": "60",
            "TEACHER_LORA_DROPOUT": "0",
        }
        jobs[nodes] = place.sbatch(f"{TEACHERS}.sh", f"--nodes={nodes}", "--ntasks-per-node=1", **variables)
    cluster.wait(*jobs.values())
    one, two = (place.models / "small-llama_fold_0_lora" for place in places.values())
    for nodes, directory in ((1, one), (2, two)):
        assert cluster.states(jobs[nodes]) == ["COMPLETED"], places[nodes].logs()
        assert json.loads((directory / "manifest.json").read_text("utf-8"))["processes"] == nodes, places[nodes].logs()
    first, second = losses(one), losses(two)
    assert len(first) >= 4
    assert max(first) - min(first) > 1e-3, "nothing changes: the curves would agree whatever happened"
    np.testing.assert_allclose(second, first, rtol=1e-5)
    weights, others = (load_file(directory / "adapter_model.safetensors") for directory in (one, two))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
