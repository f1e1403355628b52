"""A student's classification head written to a file of its own, where it is not there already."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import Field

from arena_distill.evaluation.submission_ensemble import manifest_path
from arena_distill.inference.predict_job import finished_student, student_identity
from arena_distill.inference.predict_settings import MERGED
from arena_distill.runtime.artifacts import (
    fingerprint,
    locked,
    read_manifest_file,
    require_writable,
    sha256_file,
    write_manifest,
)
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.run_settings import RunSettings

STAGE = "export_classifier_head"
HEAD_FILE = "classifier_head.pt"


class ExportHeadSettings(RunSettings):
    """Whose head, and where to."""

    model_dir: str = Field("", description="student of any kind; default model_save/[RUN/]final_merged_model")
    out: str = Field("", description=f".pt or .safetensors; default MODEL_DIR/{HEAD_FILE}")

    @property
    def model(self) -> Path:
        """The student."""
        return Path(self.model_dir) if self.model_dir else self.model_save / MERGED

    @property
    def head_file(self) -> Path:
        """Where its head goes.

        Raises:
            SettingsError: neither ``.pt`` nor ``.safetensors``.
        """
        path = Path(self.out) if self.out else self.model / HEAD_FILE
        if path.suffix not in (".pt", ".safetensors"):
            raise SettingsError(f"--out (or OUT): {path} -> give a file name that ends in .pt or .safetensors")
        return path


def export_head(settings: ExportHeadSettings) -> None:
    """Write the head, whole or not at all, and print its shapes and its identity.

    Raises:
        InputError: there is no finished student or it has no trained head, or the file cannot be written there.
    """
    started = time.time()
    model, out = settings.model, settings.head_file
    manifest = finished_student(model)
    inputs = {"model": student_identity(model)}
    in_model = out.resolve().parent == model.resolve()
    recorded = manifest["outputs"].get(out.name) if in_model else None
    if recorded and out.is_file() and recorded == sha256_file(out):
        print(f"{out}: up to date (the student came with it)")
        return
    if in_model and (recorded or out.suffix == ".safetensors"):
        raise InputError(
            f"{out}: lies among the weights of {model}, whose manifest would no longer hold -> choose another --out "
            "(or HEAD_OUT)"
        )
    if not settings.force and _is_there(out, inputs):
        print(f"{out}: up to date (FORCE=1 exports again)")
        return
    require_writable(out)
    from arena_distill.models.exported_head import student_head, write_head
    from arena_distill.models.head_file import head_sha256

    with locked(out):
        head = student_head(model)
        identity = head_sha256(head)
        manifest_path(out).unlink(missing_ok=True)
        write_head(head, out)
        shapes = {name: list(tensor.shape) for name, tensor in head.items()}
        write_manifest(
            out,
            path=manifest_path(out),
            stage=STAGE,
            settings={},
            inputs=inputs,
            started=started,
            details={"head_sha256": identity, "shapes": shapes, "model_dir": str(model)},
        )
    for name, shape in shapes.items():
        print(f"{name:<32} {' x '.join(map(str, shape))}")
    print(f"{out}: written, head_sha256 {identity}")


def _is_there(out: Path, inputs: dict[str, str]) -> bool:
    manifest = read_manifest_file(manifest_path(out))
    if manifest is None or not out.is_file() or manifest["fingerprint"] != fingerprint({}, inputs):
        return False
    return bool(manifest["outputs"].get(out.name) == sha256_file(out))
