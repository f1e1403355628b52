"""The probe of a quantized model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arena_distill.data.prompts import Sequences
from arena_distill.data.ragged import Ragged
from arena_distill.models.probe import PROBE_FILE, PROBE_ROWS, check_probe, write_probe
from arena_distill.runtime.errors import InputError


class Linear:
    """A judge whose logits are a linear function of a row's length and first token."""

    def __init__(self, slope: float = 1.0, shift: float = 0.0) -> None:
        self.slope, self.shift = slope, shift

    def score(self, sequences: Sequences) -> np.ndarray:
        first = np.array([sequences.ids[row][0] for row in range(len(sequences))])
        lengths = sequences.ids.lengths
        columns = [self.slope * first + self.shift, lengths / 4, np.zeros(len(lengths))]
        return np.stack(columns, axis=1).astype(np.float32)


def sequences(rows: int, segments: bool = False) -> Sequences:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 5, size=length).astype(np.int32) for length in rng.integers(3, 20, size=rows)]
    ids = Ragged.from_rows(parts)
    return Sequences(ids, Ragged(ids.values % 2, ids.offsets) if segments else None)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_same_model_passes(tmp_path: Path, rows: int, segments: bool) -> None:
    write_probe(Linear(), sequences(rows, segments), tmp_path)
    assert check_probe(Linear(), tmp_path) == 0


def test_rounding_passes(tmp_path: Path) -> None:
    write_probe(Linear(), sequences(40), tmp_path)
    assert 0 < check_probe(Linear(shift=0.01), tmp_path) < 0.01


@pytest.mark.parametrize("other", [Linear(slope=-1.0), Linear(shift=0.5)])
def test_another_model_is_refused(tmp_path: Path, other: Linear) -> None:
    write_probe(Linear(), sequences(40), tmp_path)
    with pytest.raises(InputError, match="answers otherwise than when it was made"):
        check_probe(other, tmp_path)


def test_a_model_that_gives_no_number_is_refused(tmp_path: Path) -> None:
    write_probe(Linear(), sequences(40), tmp_path)
    with pytest.raises(InputError, match="answers otherwise"):
        check_probe(Linear(shift=float("nan")), tmp_path)


def test_the_rows_are_of_all_lengths(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    given = sequences(40)
    write_probe(Linear(), given, tmp_path)
    lengths = load_file(tmp_path / PROBE_FILE)["lengths"].numpy()
    assert len(lengths) == PROBE_ROWS
    assert (lengths.min(), lengths.max()) == (given.ids.lengths.min(), given.ids.lengths.max())


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_missing_or_broken_probe_is_refused(tmp_path: Path, damage: str) -> None:
    write_probe(Linear(), sequences(40), tmp_path)
    file = tmp_path / PROBE_FILE
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 20 if damage == "cut" else 0])
    with pytest.raises(InputError, match="quantize the model again"):
        check_probe(Linear(), tmp_path)
