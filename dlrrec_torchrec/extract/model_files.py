"""Where a pretrained model's files are: a folder, or a name on the model hub."""

from __future__ import annotations

from pathlib import Path

from dlrrec_torchrec.store.errors import DataError

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
