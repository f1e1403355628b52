"""What the hub, or its cache on this machine, has of a model. Nothing is fetched but answers of a few kilobytes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arena_distill.pipeline.preflight_chain import hub_cache

TIMEOUT_SECONDS = 5.0
"""For each question to the hub."""

_YES = ("1", "ON", "YES", "TRUE")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "tekken.json")
_AT_ONCE = 8


@dataclass(frozen=True)
class HubModel:
    """A model that the hub would give us, or why it would not."""

    problem: str = ""
    advice: str = ""
    files: Mapping[str, int] | None = None  # name -> bytes
    config: Mapping[str, Any] = field(default_factory=dict)  # its config.json, if that could be read

    @property
    def weight_bytes(self) -> int:
        """Of all safetensors files."""
        return sum(size for name, size in (self.files or {}).items() if name.endswith(".safetensors"))


def is_offline(variables: Mapping[str, str]) -> bool:
    """Whether the stages will ask no hub."""
    return any(variables.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def cached_directory(name: str, variables: Mapping[str, str]) -> Path | None:
    """Where the cache has files of a model, perhaps not all of them; None if it has no ``config.json``."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", cache_dir=hub_cache(variables))
    except (HFValidationError, OSError):
        return None
    return Path(found).parent if isinstance(found, str) else None


def is_hub_name(name: str) -> bool:
    """Whether a text could be the name of a model on the hub at all."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def ask_hub(names: Collection[str], timeout: float = TIMEOUT_SECONDS) -> dict[str, HubModel]:
    """What the hub says of each, side by side: a hub that does not answer costs its time once."""
    if not names:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(names))) as pool:
        return dict(zip(names, pool.map(lambda name: _ask(name, timeout), names), strict=True))


def _ask(name: str, timeout: float) -> HubModel:
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    token = "set HF_TOKEN in your environment (https://huggingface.co/settings/tokens)"
    if os.environ.get("HF_TOKEN"):
        token = "use the HF_TOKEN of an account that has it"
    try:
        info = HfApi().model_info(name, timeout=timeout, files_metadata=True)
        # The list of files is public even where the files are not: only asking for one tells.
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=timeout)
    except GatedRepoError:
        return HubModel("gated: its files are not for everybody", f"accept its licence on the hub, and {token}")
    except RepositoryNotFoundError:
        return HubModel("the hub has no such model, or it is private", f"correct the name, or {token}")
    except EntryNotFoundError:
        return HubModel("the hub has it, without a config.json", "name a transformers model")
    except OfflineModeIsEnabled:
        return HubModel("not asked: HF_HUB_OFFLINE is set", "unset it to look")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        if status in (401, 403):
            return HubModel(f"the hub refuses it (HTTP {status})", f"accept its licence on the hub, and {token}")
        return HubModel(f"the hub answers with HTTP {status}", "look at it in a browser, and try again later")
    except Exception as error:  # of the network library, which is another one from version to version
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return HubModel(f"the hub cannot be reached ({reason})", fetch_advice(name))
    files = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    return _complete(HubModel(files=files, config=_config(name, timeout)))


def _config(name: str, timeout: float) -> dict[str, Any]:
    """``config.json`` read over the network, and written nowhere; empty if it cannot be had."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    try:
        answer = get_session().get(hf_hub_url(name, "config.json"), headers=build_hf_headers(), timeout=timeout)
        config = answer.json() if answer.status_code == 200 else {}
    except Exception:  # of the network library, or no JSON: sizes are then not known, and that is said elsewhere
        return {}
    return config if isinstance(config, dict) else {}


def fetch_advice(name: str) -> str:
    """How to have a model where there is no network."""
    return f"`hf download {name}` where there is a network and the same HF_HOME, or name a local directory"


def _complete(model: HubModel) -> HubModel:
    files: Iterable[str] = model.files or ()
    if not any(name.endswith(".safetensors") for name in files):
        return HubModel("has no safetensors weights on the hub", "name a model that has", model.files)
    if not any(name in _VOCABULARIES for name in files):
        return HubModel("has no tokenizer on the hub", "name its tokenizer (…_TOK), or another model", model.files)
    return model
