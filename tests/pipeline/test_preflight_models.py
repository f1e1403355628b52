"""Models and tokenizers: whole, cut short, misnamed, cached, on a hub that answers in all the ways hubs do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arena_distill.models.tiny import DECODERS, families
from arena_distill.pipeline.preflight_labels import label_pieces
from tests.conftest import REPOSITORY
from tests.pipeline.preflight_runs import Line, Look, copy_model, look, rewrite

WEIGHTS = "model.safetensors"


def _spoil(backbones: Path, target: Path, spoil: Callable[[Path], object], family: str = "llama") -> Path:
    model = copy_model(backbones / family, target)
    spoil(model)
    return model


def _cut(model: Path) -> None:
    rewrite(model / WEIGHTS, (model / WEIGHTS).read_bytes()[:-100])


def _sharded(model: Path) -> None:
    """The same weights by way of an index, of whose two files one is missing."""
    from arena_distill.models.safetensors_file import read_header

    names = list(read_header(model / WEIGHTS)[0])
    (model / WEIGHTS).rename(model / "model-00001-of-00002.safetensors")
    places = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {names[-1]: "model-00002-of-00002.safetensors"}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _without_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def _only_adapter(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")


def _quantized(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"quantization_config": {"bits": 4}}
    rewrite(model / "config.json", json.dumps(config))


SPOILED = [
    ("cut short", _cut, "its header says"),
    ("a file of the index missing", _sharded, "model-00002-of-00002.safetensors"),
    ("no weights", lambda model: (model / WEIGHTS).unlink(), "no model.safetensors"),
    ("no tokenizer", _without_tokenizer, "no tokenizer"),
    ("broken config", lambda model: rewrite(model / "config.json", "{"), "cannot be read as JSON"),
    ("no object", lambda model: rewrite(model / "config.json", "[]"), "no JSON object"),
    ("no config", lambda model: (model / "config.json").unlink(), "no config.json"),
    ("an adapter", _only_adapter, "no config.json"),
    ("quantized", _quantized, "is quantized"),
]


@pytest.mark.parametrize(("spoil", "words"), [case[1:] for case in SPOILED], ids=[case[0] for case in SPOILED])
@pytest.mark.parametrize("setting", ["LLAMA_BASE", "STUDENT_MODEL_NAME"])
def test_a_directory_that_is_not_whole(
    setting: str, spoil: Callable[[Path], object], words: str, profile: Path, backbones: Path, tmp_path: Path
) -> None:
    model = _spoil(backbones, tmp_path / "model", spoil)
    seen = look("--profile", str(profile), **{setting: model})
    assert seen.code == 3
    seen.one("fix", "models", setting, words)


def test_a_tokenizer_of_its_own(profile: Path, backbones: Path, tmp_path: Path) -> None:
    model = _spoil(backbones, tmp_path / "model", _without_tokenizer)
    seen = look("--profile", str(profile), LLAMA_BASE=model, LLAMA_TOK=backbones / "llama")
    assert seen.code == 0
    seen.one("ok", "models", "LLAMA_BASE", "whole")


@pytest.mark.parametrize("name", ["model_save/none", "./none", "/none/at/all", "a/b/c", "~/no-such-model", "data/x"])
def test_a_path_to_nothing_is_not_taken_for_a_hub_name(name: str, profile: Path) -> None:
    line = look("--profile", str(profile), STUDENT_MODEL_NAME=name).one("fix", "models", "STUDENT_MODEL_NAME")
    assert "directory of this machine" in line.advice


def test_a_tiny_model_that_step_1_does_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(REPOSITORY / "data" / "sample")
    monkeypatch.chdir(tmp_path)
    seen = look("--profile", "tiny", STUDENT_MODEL_NAME="model_save/tiny/qwen2", OUTPUT_DIR=tmp_path)
    assert "TINY_FAMILIES" in seen.one("fix", "models", "STUDENT_MODEL_NAME").advice
    seen = look("--profile", "tiny", STUDENT_MODEL_NAME="model_save/tiny/qwen2", OUTPUT_DIR=tmp_path,
                TINY_FAMILIES="llama,bert,qwen2:64")  # fmt: skip
    assert seen.code == 0


def test_an_encoder_is_no_teacher_that_speaks(profile: Path, backbones: Path) -> None:
    seen = look("--profile", str(profile), LLAMA_FT_BASE=backbones / "bert", RUN_STAGE="llama")
    seen.one("fix", "models", "LLAMA_FT_BASE", "BertForSequenceClassification")
    seen = look("--profile", str(profile), ENCODER_FT_BASE=backbones / "bert", ENCODER_MAXLEN=64)
    assert seen.code == 0


def test_gptq_of_an_encoder(profile: Path, backbones: Path) -> None:
    flags = {"STUDENT_MODEL_NAME": backbones / "bert"}
    assert look("--profile", str(profile), **flags).code == 0
    look("--profile", str(profile), QUANT_BITS=4, **flags).one("fix", "models", "QUANT_BITS", "encoder")


@pytest.mark.parametrize(
    ("family", "level"), [("bert", "fix"), ("distilbert", "fix"), ("llama", "warning"), ("deberta-v2", "warning")]
)
def test_texts_longer_than_the_model_reads(family: str, level: str, profile: Path, backbones: Path) -> None:
    flags = ("--profile", str(profile))
    assert look(*flags, STUDENT_MODEL_NAME=backbones / family).code == 0
    seen = look(*flags, STUDENT_MODEL_NAME=backbones / family, TTA_LENGTHS="64,513", STUDENT_MAXLEN=512)
    assert "512" in seen.one(level, "models", "TTA_LENGTHS", "513").text
    seen = look(*flags, STUDENT_MODEL_NAME=backbones / family, STUDENT_MAXLEN=600)
    seen.one(level, "models", "STUDENT_MAXLEN", "600")


def test_a_base_that_has_seen_votes(profile: Path, backbones: Path, tmp_path: Path) -> None:
    from arena_distill.runtime.artifacts import write_manifest
    from tests.pipeline.test_preflight_data import _make_folds

    _make_folds(profile)
    model = copy_model(backbones / "llama", tmp_path / "model")
    write_manifest(model, stage="step5_distill_student", settings={}, inputs={}, started=0)
    seen = look("--profile", str(profile), STUDENT_MODEL_NAME=model)
    seen.one("fix", "models", "STUDENT_MODEL_NAME", "was trained on votes")


# The hub, its cache, and no network


def _cache(home: Path, name: str, source: Path, leave_out: str = "") -> Path:
    """A model as huggingface_hub keeps it."""
    directory = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = directory / "snapshots" / ("0" * 40)
    shutil.copytree(source, snapshot)
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text("0" * 40)
    if leave_out:
        (snapshot / leave_out).unlink()
    return snapshot


def test_a_cached_model(profile: Path, backbones: Path, tmp_path: Path) -> None:
    _cache(tmp_path / "hf", "org/model", backbones / "llama")
    names = {"STUDENT_MODEL_NAME": "org/model", "LLAMA_BASE": "org/model"}
    seen = look("--profile", str(profile), HF_HOME=tmp_path / "hf", HF_HUB_OFFLINE=1, **names)
    assert seen.code == 0
    seen.one("ok", "models", "LLAMA_BASE, STUDENT_MODEL_NAME (steps 1, 5)", "(cached)")
    seen.one("ok", "label tokens", "POSTPRE_LABEL_WORDS", "one token each")
    gone = look("--profile", str(profile), HF_HOME=tmp_path / "other", HF_HUB_OFFLINE=1, **names)
    assert gone.code == 3
    assert "hf download org/model" in gone.one("fix", "models", "LLAMA_BASE").advice
    assert "hf download org/model" in gone.one("warning", "label tokens").advice


def test_a_cached_model_that_is_not_whole(profile: Path, backbones: Path, tmp_path: Path) -> None:
    _cache(tmp_path / "hf", "org/model", backbones / "llama", leave_out=WEIGHTS)
    seen = look("--profile", str(profile), HF_HOME=tmp_path / "hf", HF_HUB_OFFLINE=1, STUDENT_MODEL_NAME="org/model")
    seen.one("fix", "models", "STUDENT_MODEL_NAME", "no model.safetensors")


@dataclass
class Hub:
    """A hub on this machine."""

    config: str = "{}"
    files: dict[str, int] = field(default_factory=lambda: {"config.json": 10, WEIGHTS: 3 * 10**9, "tokenizer.json": 5})
    status: int = 200
    error: str = ""  # X-Error-Code
    asked: list[str] = field(default_factory=list)
    authorization: set[str] = field(default_factory=set)
    address: str = ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            state.asked.append(f"{self.command} {self.path}")
            state.authorization.add(self.headers.get("Authorization", ""))
            listing = self.path.startswith("/api/")
            refused = state.status != 200 and not (listing and state.error == "GatedRepo")
            body = json.dumps(
                {"id": "org/model", "sha": "0" * 40, "siblings": [
                    {"rfilename": name, "size": size} for name, size in state.files.items()
                ]}
            ).encode()  # fmt: skip
            if self.path.endswith("config.json"):
                body = state.config.encode()
            self.send_response(state.status if refused else 200)
            if refused and state.error:
                self.send_header("X-Error-Code", state.error)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()


def _online(profile: Path, endpoint: str, home: Path, **settings: object) -> tuple[Look, str]:
    """In a process of its own: the library reads its environment once."""
    code = "import sys; from arena_distill.pipeline.preflight import preflight; sys.exit(preflight(sys.argv[1:]))"
    variables = {name: str(value) for name, value in settings.items()}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "STUDENT_MODEL_NAME": "org/model"}
    done = subprocess.run(
        [sys.executable, "-c", code, "--profile", str(profile), "--json"],
        capture_output=True, text=True, env={**os.environ, **own, **variables}, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    findings = [Line(**finding) for finding in json.loads(done.stdout)["findings"]]
    return Look(done.returncode, findings), done.stdout + done.stderr


def test_a_model_on_the_hub(hub: Hub, profile: Path, tmp_path: Path, backbones: Path) -> None:
    hub.config = (backbones / "llama" / "config.json").read_text()
    seen, _ = _online(profile, hub.address, tmp_path)
    assert seen.code == 0
    assert "3.0 GB to be fetched" in seen.one("ok", "models", "STUDENT_MODEL_NAME").said
    assert "3.0 GB" in seen.one("ok", "disk", "hub: ", "org/model").said
    assert "students of" in seen.one("ok", "disk", "step 5").said
    assert any(line.startswith("HEAD /org/model/resolve/main/config.json") for line in hub.asked)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (403, "GatedRepo", ("gated", "licence", "HF_TOKEN")),
        (401, "GatedRepo", ("gated", "HF_TOKEN")),
        (404, "RepoNotFound", ("no such model", "HF_TOKEN")),
        (401, "", ("401", "HF_TOKEN")),
        (403, "", ("refuses", "403", "HF_TOKEN")),
        (503, "", ("503",)),
    ],
)
def test_a_hub_that_does_not_give_it(
    status: int, error: str, words: tuple[str, ...], hub: Hub, profile: Path, tmp_path: Path
) -> None:
    hub.status, hub.error = status, error
    secret = "hf_" + "s" * 30
    seen, printed = _online(profile, hub.address, tmp_path, HF_TOKEN=secret)
    assert seen.code == 3
    seen.one("fix", "models", "STUDENT_MODEL_NAME", *words)
    assert f"Bearer {secret}" in hub.authorization
    assert secret not in printed


@pytest.mark.parametrize(("missing", "words"), [(WEIGHTS, "no safetensors"), ("tokenizer.json", "no tokenizer")])
def test_a_model_of_the_hub_that_lacks_files(missing: str, words: str, hub: Hub, profile: Path, tmp_path: Path) -> None:
    del hub.files[missing]
    seen, _ = _online(profile, hub.address, tmp_path)
    seen.one("fix", "models", "STUDENT_MODEL_NAME", words)


def test_a_hub_that_cannot_be_reached(profile: Path, tmp_path: Path) -> None:
    seen, _ = _online(profile, "http://127.0.0.1:9", tmp_path)
    assert "hf download org/model" in seen.one("fix", "models", "STUDENT_MODEL_NAME", "cannot be reached").advice


def test_offline_nobody_is_asked(hub: Hub, profile: Path, tmp_path: Path) -> None:
    seen, _ = _online(profile, hub.address, tmp_path, HF_HUB_OFFLINE=1)
    assert seen.code == 3
    assert hub.asked == []


# Label tokens


@pytest.mark.parametrize("family", DECODERS)
def test_label_words_are_looked_up_as_training_does(family: str, backbones: Path) -> None:
    from arena_distill.models.classifier import load_tokenizer

    words = ["A", "B", "C", "Zebra", "A B", "\N{SNOWMAN}", "The", "tie"]
    tokenizer = load_tokenizer(str(backbones / family))
    pieces, unknown = label_pieces(backbones / family, words)
    assert pieces == [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    assert unknown in (None, tokenizer.unk_token_id)  # none: pieces of bytes leave nothing unknown


@pytest.mark.parametrize(
    ("words", "said"), [("A,B,Zebra-Crossing", "'Zebra-Crossing' for tie is"), ("A,B,\N{SNOWMAN}", "for tie is")]
)
def test_label_words_that_are_several_tokens(words: str, said: str, profile: Path) -> None:
    seen = look("--profile", str(profile), TEACHER_LABEL_WORDS=words, POSTPRE_LABEL_WORDS=words)
    assert seen.code == 2
    assert said in seen.one("fix", "label tokens", "POSTPRE_LABEL_WORDS").said


def test_a_word_that_is_unknown(profile: Path, backbones: Path) -> None:
    pieces, unknown = label_pieces(backbones / "bert", ["\N{SNOWMAN}"])
    assert pieces == [[unknown]]
    seen = look("--profile", str(profile), LLAMA_FT_BASE=backbones / "bert", TEACHER_LABEL_WORDS="A,B,\N{SNOWMAN}")
    assert "unknown" in seen.one("fix", "label tokens", "TEACHER_LABEL_WORDS").said


def test_a_tokenizer_without_a_json_file_is_read_by_transformers(backbones: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model = copy_model(backbones / "bert", tmp_path / "model")
    whole = Tokenizer.from_file(str(model / "tokenizer.json"))
    vocabulary = sorted(whole.get_vocab().items(), key=lambda entry: entry[1])
    (model / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), "utf-8")
    (model / "tokenizer.json").unlink()
    rewrite(model / "tokenizer_config.json", json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False}))
    pieces, unknown = label_pieces(model, ["the", "[UNK]"])
    assert pieces == [[dict(vocabulary)["the"]], [unknown]]


def test_a_broken_tokenizer(profile: Path, backbones: Path, tmp_path: Path) -> None:
    model = _spoil(backbones, tmp_path / "model", lambda model: rewrite(model / "tokenizer.json", "{"))
    seen = look("--profile", str(profile), LLAMA_BASE=model)
    seen.one("fix", "label tokens", "POSTPRE_LABEL_WORDS, TEACHER_LABEL_WORDS (steps 1, 3)", "cannot be read")


def test_every_family_is_measured(backbones: Path) -> None:
    from arena_distill.pipeline.preflight_models import read_model

    for family in families():
        model = read_model(backbones / family)
        stored = (backbones / family / WEIGHTS).stat().st_size
        assert model.weight_bytes == stored
        assert model.architecture is not None
        # As if the MLP of an encoder had a gate, and without its table of positions.
        assert 0.75 <= 4 * model.architecture.parameters / stored <= 1.5, family


def test_a_hub_model_of_unknown_size_is_a_guess_and_no_refusal(hub: Hub, profile: Path, tmp_path: Path) -> None:
    seen, _ = _online(profile, hub.address, tmp_path)
    assert seen.code == 0
    seen.one("warning", "disk", "step 5", "a figure for large models")
    seen.one("warning", "memory", "step 5", "no estimate")
