"""SWING: exact neighbours of users and items from a bipartite graph. Independent of torch and of DLRREC."""

from swing.config import PRESETS, SwingConfig, SwingError, preset
from swing.interactions import read
from swing.job import run, similar
from swing.tables import Filters

__all__ = ["PRESETS", "Filters", "SwingConfig", "SwingError", "preset", "read", "run", "similar"]
