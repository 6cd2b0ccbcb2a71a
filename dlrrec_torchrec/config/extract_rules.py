"""Rules on the settings of extraction, for `check`."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from typing import Any

from dlrrec_torchrec.config.llm_section import LOCAL

# Of the local server: what would serve another file than the one whose answers are kept, or to others.
_OWN_OPTIONS = {"model", "model_alias", "config_file", "host", "port", "api_key"}


def _cluster(address: str, engine: str) -> str | None:
    return "is that of a Ray cluster: set extract.engine=ray too" if address and engine != "ray" else None


def _precision(precision: str, encoder: str, engine: str) -> str | None:
    if precision == "exact":
        return None
    if encoder.startswith("server:"):
        return f"is for an encoder on this machine, not {encoder}: use exact"
    return "is for this machine: use exact, or extract.engine=local" if engine != "local" else None


def _address(url: str) -> str | None:
    if url.startswith(LOCAL):
        return None if url.removeprefix(LOCAL) else f"{url!r} names no file, as local:weights.gguf"
    parts = urllib.parse.urlsplit(url)
    if "@" in parts.netloc:
        return "has a password, which would be written down; use llm.api_key_env"
    right = parts.scheme in ("http", "https") and parts.hostname
    return None if right else f"{url!r} is no address of a server, as http://localhost:8080/v1"


def _captions(captioner: str, vectors: str) -> str | None:
    if captioner != "none" and vectors != "captions":
        return f"writes captions, of which pictures.picture_vectors={vectors} makes nothing: set it to none"
    return None


def _options(options: dict) -> str | None:
    taken = sorted(_OWN_OPTIONS & set(options))
    return f"{', '.join(taken)}: is set by llm.base_url=local:FILE, and cannot be here" if taken else None


def _not_local(refused: Callable[[Any], bool], why: str) -> Callable[[Any, str], str | None]:
    def rule(value: Any, url: str) -> str | None:
        local = url.startswith(LOCAL) and refused(value)
        return f"the local model of llm.base_url {why}; name a server there" if local else None

    return rule


# Settings that a rule takes as arguments, and the rule; what it returns is reported for the first.
EXTRACT_RULES: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("extract.address", "extract.engine"), _cluster),
    (("extract.encoder_precision", "extract.encoder", "extract.engine"), _precision),
    (("llm.base_url",), _address),
    (("llm.local_options",), _options),
    (("pictures.captioner", "pictures.picture_vectors"), _captions),
    (("llm.batch", "llm.base_url"), _not_local(bool, "takes no batches")),
    (("pictures.captioner", "llm.base_url"), _not_local("vision".__eq__, "sees no pictures")),
    (
        ("extract.encoder", "llm.base_url"),
        _not_local(lambda encoder: encoder.startswith("server:"), "makes no vectors"),
    ),
)
