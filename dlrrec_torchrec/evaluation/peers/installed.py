"""Which peers can be computed here."""

from __future__ import annotations

import importlib.util
import os
import tempfile

PACKAGES = {"surprise": "scikit-surprise", "implicit": "implicit", "lightgbm": "lightgbm"}


def not_installed(module: str) -> str | None:
    """Why a peer that needs `module` is left out, with the way to have it; None where it is installed."""
    if importlib.util.find_spec(module):
        return None
    return f"it needs {PACKAGES[module]}: pip install 'dlrrec-torchrec[peers]'"


def quiet_surprise() -> None:
    """Call before scikit-surprise is imported: it makes a folder for data sets, else in the home folder."""
    os.environ.setdefault("SURPRISE_DATA_FOLDER", os.path.join(tempfile.gettempdir(), "surprise-data"))
