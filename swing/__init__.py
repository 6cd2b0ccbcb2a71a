"""SWING: exact neighbours of users and items from a bipartite graph. Stands alone, without torch."""

from swing.config import PRESETS, SwingConfig, SwingError, preset
from swing.interactions import read
from swing.job import run, similar

__all__ = ["PRESETS", "SwingConfig", "SwingError", "preset", "read", "run", "similar"]
