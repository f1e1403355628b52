"""A merge is refused rather than wrong, and its output appears whole or stays as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from arena_distill.models import merge
from arena_distill.models.backbone import model_identity
from arena_distill.models.merge import merge_adapter
from arena_distill.runtime.artifacts import partial_directory, read_manifest, sha256_path
from arena_distill.runtime.errors import ArenaError, InputError, SettingsError
from tests.conftest import REPOSITORY
from tests.models.merge_cases import ATTENTION, assert_equal, load_whole, make_adapter, merged_by_peft, resaved


@pytest.fixture(scope="module")
def llama_adapter(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(backbones / "llama", tmp_path_factory.mktemp("llama") / "adapter", target_modules=ATTENTION)


@pytest.fixture
def llama(backbones: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(backbones / "llama", tmp_path / "llama")


@pytest.fixture
def adapter(llama_adapter: Path, tmp_path: Path) -> Path:
    """A copy to damage, of an adapter of ``llama``."""
    return shutil.copytree(llama_adapter, tmp_path / "adapter")


# --- refused, with everything left as it was -------------------------------------------------------------------------


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any], name: str = "") -> None:
    file = directory / (name or "adapter_model.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


def in_many_files(llama: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(llama)
    (llama / "model.safetensors").unlink()
    model.save_pretrained(llama, max_shard_size="50KB")
    return sorted(llama.glob("model-*.safetensors"))[-1]


def with_bins_only(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")


def first(tensors: dict[str, torch.Tensor], factor: str) -> str:
    return next(name for name in sorted(tensors) if factor in name)


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "no adapter": (lambda base, adapter: shutil.rmtree(adapter), "adapter_config.json: missing"),
    "no adapter config": (lambda base, adapter: (adapter / CONFIG).unlink(), "adapter_config.json: missing"),
    "broken adapter config": (lambda base, adapter: cut(adapter / CONFIG, 9), "adapter_config.json: broken"),
    "no adapter weights": (lambda base, adapter: (adapter / WEIGHTS).unlink(), "adapter_model.safetensors: missing"),
    "cut adapter": (lambda base, adapter: cut(adapter / WEIGHTS, 9), "adapter_model.safetensors: .* bytes, its header"),
    "empty adapter": (lambda base, adapter: (adapter / WEIGHTS).write_bytes(b""), "damaged or cut short"),
    "no factors": (lambda base, adapter: edit_tensors(adapter, dict.clear), "holds no LoRA factors"),
    "DoRA": (lambda base, adapter: edit_json(adapter / CONFIG, use_dora=True), "use_dora=True cannot be merged"),
    "bias of LoRA": (lambda base, adapter: edit_json(adapter / CONFIG, lora_bias=True), "lora_bias=True cannot"),
    "bias": (lambda base, adapter: edit_json(adapter / CONFIG, bias="all"), "bias='all' cannot"),
    "aLoRA": (
        lambda base, adapter: edit_json(adapter / CONFIG, alora_invocation_tokens=[1]),
        "alora_invocation_tokens",
    ),
    "experts": (lambda base, adapter: edit_json(adapter / CONFIG, target_parameters=["up"]), "target_parameters"),
    "replication": (lambda base, adapter: edit_json(adapter / CONFIG, layer_replication=[[0, 1]]), "layer_replication"),
    "tokens": (
        lambda base, adapter: edit_json(adapter / CONFIG, trainable_token_indices=[1]),
        "trainable_token_indices",
    ),
    "another method": (lambda base, adapter: edit_json(adapter / CONFIG, peft_type="IA3"), "peft_type IA3"),
    "PiSSA": (lambda base, adapter: edit_json(adapter / CONFIG, init_lora_weights="pissa_niter_4"), "changes the base"),
    "later invention": (lambda base, adapter: edit_json(adapter / CONFIG, use_magic=1), "use_magic=1 cannot"),
    "another rank": (
        lambda base, adapter: edit_json(adapter / CONFIG, r=8),
        "rank 4 and 4, adapter_config.json says 8",
    ),
    "no rank": (lambda base, adapter: edit_json(adapter / CONFIG, r=0), "r=0"),
    "head left out": (lambda base, adapter: edit_json(adapter / CONFIG, modules_to_save=["score"]), "trained whole"),
    "half a pair": (
        lambda base, adapter: edit_tensors(adapter, lambda t: t.pop(first(t, "lora_A"))),
        "only one of the two LoRA factors",
    ),
    "magnitudes": (
        lambda base, adapter: edit_tensors(
            adapter, lambda t: t.update({first(t, "lora_A").replace("A.weight", "magnitude_vector"): torch.ones(2)})
        ),
        "only plain LoRA factors",
    ),
    "NaN": (
        lambda base, adapter: edit_tensors(adapter, lambda t: t[first(t, "lora_B")].view(-1)[-1:].fill_(torch.nan)),
        "lora_B.weight holds NaN",
    ),
    "another width": (
        lambda base, adapter: edit_tensors(adapter, lambda t: t.update({first(t, "lora_A"): torch.ones(4, 48)})),
        r"adapter of another base: .* has the shape \[32, 32\]",
    ),
    "another depth": (
        lambda base, adapter: edit_tensors(
            adapter, lambda t: [t.update({name.replace("layers.0", "layers.1"): t.pop(name)}) for name in list(t)]
        ),
        r"adapter of another base: .* no partner for model.layers.1.self_attn.q_proj, ",
    ),
    "another record": (
        lambda base, adapter: write_record(adapter, "0" * 64),
        "adapter of another base than",
    ),
    "quantized": (
        lambda base, adapter: edit_json(base / "config.json", quantization_config={"quant_method": "gptq"}),
        "quantized model -> give the unquantized base",
    ),
    "no base": (lambda base, adapter: shutil.rmtree(base), "llama: not on this machine"),
    "no base config": (lambda base, adapter: (base / "config.json").unlink(), "config.json: missing"),
    "only .bin": (lambda base, adapter: with_bins_only(base), "in .bin files only"),
    "no weights": (lambda base, adapter: (base / "model.safetensors").unlink(), "no model.safetensors and no"),
    "cut base": (
        lambda base, adapter: cut(base / "model.safetensors", 1),
        "model.safetensors: .* bytes, its header says",
    ),
    "cut header": (
        lambda base, adapter: (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:99]),
        "model.safetensors: damaged or cut short, 99 bytes",
    ),
    "web page": (lambda base, adapter: (base / "model.safetensors").write_text("<html>" * 99), "damaged or cut short"),
    "cut last file": (lambda base, adapter: cut(in_many_files(base), 1), "model-0000.-of-0000.*its header says"),
    "file lost": (lambda base, adapter: in_many_files(base).unlink(), "index.json: names model-.*, which is missing"),
    "tensor lost": (
        lambda base, adapter: edit_tensors(base, dict.popitem, in_many_files(base).name),
        "lacks .*, which the index puts there",
    ),
    "NaN in the base": (
        lambda base, adapter: edit_tensors(
            base, lambda t: t["model.layers.0.self_attn.q_proj.weight"].fill_(torch.nan), "model.safetensors"
        ),
        "q_proj.weight would not be finite in F32",
    ),
}


def write_record(adapter: Path, base_identity: str) -> None:
    record = {
        "schema_version": 1,
        "stage": "x",
        "fingerprint": "",
        "outputs": {},
        "inputs": {"base_model": base_identity},
    }
    (adapter / "manifest.json").write_text(json.dumps(record))


@pytest.mark.parametrize("case", DAMAGES)
def test_what_cannot_be_merged_is_refused_and_nothing_changes(
    case: str, llama: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge_adapter(str(llama), adapter, out, dtype="bfloat16")
    before = sha256_path(out)
    damage, message = DAMAGES[case]
    damage(llama, adapter)
    with pytest.raises(InputError, match=message) as raised:
        merge_adapter(str(llama), adapter, out)
    assert "\n" not in str(raised.value)
    assert sha256_path(out) == before and not partial_directory(out).exists()


def test_after_a_refusal_the_next_merge_works(llama: Path, adapter: Path, llama_adapter: Path, tmp_path: Path) -> None:
    edit_json(adapter / CONFIG, r=8)
    with pytest.raises(InputError):
        merge_adapter(str(llama), adapter, tmp_path / "out")
    merge_adapter(str(llama), llama_adapter, tmp_path / "out")
    assert_equal(dict(load_whole(tmp_path / "out").state_dict()), merged_by_peft(llama, llama_adapter))


@pytest.mark.parametrize("form", ["pooler not saved", "two labels", "head of another task"])
def test_a_head_that_would_be_random_or_of_another_size_is_refused(form: str, backbones: Path, tmp_path: Path) -> None:
    base = resaved(backbones / "bert", tmp_path / "base", auto=AutoModelForMaskedLM)
    head = ["classifier"] if form == "pooler not saved" else ["pooler", "classifier"]
    adapter = make_adapter(base, tmp_path / "adapter", head=True, target_modules=["query"], modules_to_save=head)
    labels, message = None, "bert.pooler.dense.bias, bert.pooler.dense.weight of the classifier"
    if form == "two labels":
        labels, message = ["yes", "no"], r"classifier.weight has the shape \[3, 32\], the classifier needs \[2, 32\]"
    elif form == "head of another task":
        edit_json(adapter / CONFIG, task_type="TOKEN_CLS")
        message = "an adapter for TOKEN_CLS"
    with pytest.raises(InputError, match=message):
        merge_adapter(str(base), adapter, tmp_path / "out", labels=labels)


def test_a_type_too_narrow_is_refused(llama: Path, llama_adapter: Path, tmp_path: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors["lm_head.weight"].fill_(1e6), "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head\.weight would not be finite in F16"):
        merge_adapter(str(llama), llama_adapter, tmp_path / "out", dtype="float16")
    with pytest.raises(SettingsError, match="float8"):
        merge_adapter(str(llama), llama_adapter, tmp_path / "out", dtype="float8")


def test_inputs_are_never_replaced(llama: Path, adapter: Path, tmp_path: Path) -> None:
    merge_adapter(str(llama), adapter, tmp_path / "out")
    chained = tmp_path / "out"
    for place, message in ((llama, "would replace"), (adapter, "would replace"), (chained, "would replace")):
        with pytest.raises(InputError, match=message):
            merge_adapter(str(llama if place != chained else chained), adapter, place)
    with pytest.raises(InputError, match="lies in the adapter"):
        merge_adapter(str(llama), adapter, adapter / "merged")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="did not make"):
        merge_adapter(str(llama), adapter, tmp_path / "other")


# --- disk, kill, second run ------------------------------------------------------------------------------------------


def test_a_disk_too_small_is_noticed_before_the_first_byte(
    llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (llama / "model.safetensors").stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=weights))
    monkeypatch.setattr(merge, "_write_file", lambda *_: pytest.fail("began to write"))
    with pytest.raises(InputError, match=r"needs 0\.02 GB and 0\.00 GB are free"):
        merge_adapter(str(llama), adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not partial_directory(tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_the_old_output(
    llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    weights = (llama / "model.safetensors").stat().st_size
    size = 2 * weights + (1 << 19)  # room for one output and a part of the next, tokenizers included
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
        merge_adapter(str(llama), adapter, disk / "out")
        before = sha256_path(disk / "out")
        room = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_bsize - weights // 2))
        with pytest.raises(InputError, match="the disk filled up"):
            merge_adapter(str(llama), adapter, disk / "out", force=True)
        assert sha256_path(disk / "out") == before and not partial_directory(disk / "out").exists()
        (disk / "ballast").unlink()
        assert not merge_adapter(str(llama), adapter, disk / "out", force=True).up_to_date
    finally:
        subprocess.run(["umount", disk], check=True)


KILLED = """
import os, sys, time
from pathlib import Path
from arena_distill.models.merge import merge_adapter
synced = os.fsync
def fsync(handle):  # the first of several files is whole: stop there
    synced(handle)
    print("half way", flush=True)
    time.sleep(60)
os.fsync = fsync
merge_adapter(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), force=True)
"""


def test_a_kill_half_way_leaves_the_old_output_and_does_not_block_the_next(
    llama: Path, adapter: Path, tmp_path: Path
) -> None:
    in_many_files(llama)
    out = tmp_path / "out"
    merge_adapter(str(llama), adapter, out)
    before = sha256_path(out)
    command = [sys.executable, "-c", KILLED, str(llama), str(adapter), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as child:
        assert child.stdout is not None and child.stdout.readline() == "half way\n"
        with pytest.raises(ArenaError, match="another job is writing it"):
            merge_adapter(str(llama), adapter, out)
        child.send_signal(signal.SIGKILL)
    assert sha256_path(out) == before and any(partial_directory(out).glob("*.safetensors"))
    (partial_directory(out) / "leftover").touch()
    merge_adapter(str(llama), adapter, out, force=True)
    assert sha256_path(out) == before and not partial_directory(out).exists()


def test_a_second_merge_is_up_to_date_until_something_changes(llama: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fresh = merge_adapter(str(llama), adapter, out)
    again = merge_adapter(str(llama), adapter, out)
    assert again.up_to_date and not fresh.up_to_date and again.weight_bytes == fresh.weight_bytes
    assert not merge_adapter(str(llama), adapter, out, force=True).up_to_date
    assert not merge_adapter(str(llama), adapter, out, dtype="bfloat16").up_to_date
    edit_tensors(adapter, lambda tensors: tensors[first(tensors, "lora_B")].mul_(2))
    assert not merge_adapter(str(llama), adapter, out, dtype="bfloat16").up_to_date
    edit_tensors(llama, lambda tensors: tensors["lm_head.weight"].mul_(2), "model.safetensors")
    assert not merge_adapter(str(llama), adapter, out, dtype="bfloat16").up_to_date
    (out / "config.json").unlink()
    assert not merge_adapter(str(llama), adapter, out, dtype="bfloat16").up_to_date
    assert merge_adapter(str(llama), adapter, out, dtype="bfloat16").up_to_date


def test_the_manifest_tells_what_was_merged(llama: Path, adapter: Path, tmp_path: Path) -> None:
    write_record(adapter, model_identity(str(llama)))
    edit_tensors(adapter, lambda tensors: tensors[first(tensors, "lora_B")].zero_())
    AutoTokenizer.from_pretrained(llama).save_pretrained(adapter)
    edit_json(adapter / "tokenizer_config.json", model_max_length=77)
    report = merge_adapter(
        str(llama), adapter, tmp_path / "out", verify=lambda directory: {"files": len(list(directory.iterdir()))}
    )
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest["stage"] == "lora-merge" and manifest["verified"]["files"] >= 3
    assert manifest["inputs"] == {"base_model": model_identity(str(llama)), "adapter": sha256_path(adapter)}
    assert report.base_checked and report.zero_modules == 1 and manifest["merge"]["modules"] == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 77  # the adapter's own


def test_a_failed_check_publishes_nothing(llama: Path, adapter: Path, tmp_path: Path) -> None:
    def refuse(directory: Path) -> None:
        assert load_whole(directory) is not None
        raise InputError("too far from the model before it")

    with pytest.raises(InputError, match="too far"):
        merge_adapter(str(llama), adapter, tmp_path / "out", verify=refuse)
    assert not (tmp_path / "out").exists() and not partial_directory(tmp_path / "out").exists()


# --- the script ------------------------------------------------------------------------------------------------------


def run_script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "scripts/lora_merge.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def test_the_script_merges_once_and_says_so(llama: Path, adapter: Path, tmp_path: Path) -> None:
    words = ("--lora-dir", adapter, "--out-dir", tmp_path / "out")
    edit_json(adapter / CONFIG, base_model_name_or_path=str(llama))  # which is used when --base-model is not given
    merged = run_script(*words)
    assert merged.returncode == 0 and "2 modules merged" in merged.stdout, merged.stderr
    again = run_script(*words)
    assert again.returncode == 0 and "up to date" in again.stdout and "| torch\n" not in again.stderr
    assert "| torch\n" not in run_script("--help").stderr
    assert "| torch\n" in merged.stderr  # or the two lines above would prove nothing


def test_the_scripts_exit_codes(llama: Path, adapter: Path, tmp_path: Path) -> None:
    words = ("--lora-dir", adapter, "--out-dir", tmp_path / "out")
    edit_json(adapter / CONFIG, base_model_name_or_path=None)
    for extra, code, message in (
        (("--base-model", llama, "--rank", "4"), 2, "unrecognized arguments: --rank"),
        (("--base-model", llama, "--dtype", "int8"), 2, "--dtype"),
        ((), 2, "give --base-model"),
        (("--base-model", tmp_path / "typo"), 3, "no such model directory"),
    ):
        result = run_script(*words, *extra)
        assert result.returncode == code and message in result.stderr
