"""The one exception for input that cannot be used."""

from __future__ import annotations


class DataError(Exception):
    """Input that cannot be used. The message names the file, column, row or flag, and the way out."""


class Unfinished(DataError):
    """Work that was stopped before its end and is kept. The message says why, and how to go on."""
