"""A pretrained model's files: where they are, what they are, and words for those that cannot be loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import file_digest

_LOADED = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
_UNUSED = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack")


def model_folder(name: str, setting: str, way_out: str) -> Path:
    """The folder with the model `name`: itself, the hub's local cache, or downloaded into it.

    Args:
        setting, way_out: which setting named it and what else would do, for the error.

    Raises DataError where it is nowhere.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=list(_UNUSED), local_files_only=True))
    except (OSError, ValueError):  # not in the local cache
        pass
    try:
        return Path(snapshot_download(name, ignore_patterns=list(_UNUSED)))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{setting}: '{name}' is not a folder here, and the model hub does not have it ({error}); "
            f"name a folder, or {way_out}"
        ) from None


def model_digest(folder: Path) -> str:
    """A hash of the files that shape what a model makes: weights, settings, words."""
    return file_digest(path for pattern in _LOADED for path in folder.rglob(pattern))


@contextlib.contextmanager
def loading(setting: str, folder: Path, kind: str) -> Iterator[None]:
    """Raise DataError, naming `setting` and `folder`, where the block cannot load the `kind` of model that it
    asks transformers for."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{setting}: {folder} holds no {kind} that can be loaded ({reason:.200})") from None
