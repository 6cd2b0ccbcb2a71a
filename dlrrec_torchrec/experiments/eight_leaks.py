"""The names of the leaks that could make a test look better than it is."""

from __future__ import annotations

LEAKS = {
    "a": "own review kept in a training row's summaries, vectors, categories and price tag",
    "b": "tested rows' own reviews in summaries, vectors, categories and price tag",
    "c": "SWING neighbours from all rows, tested ones too",
    "d": "a label's own rating in mean ratings",
    "e": "epoch chosen on the test rows",
    "f": "filter on activity before the split",
    "g": "training rows leave out their own review alone, without folds",
    "h": "the same review on both sides of the split",
}
KEY = "leak"  # in the settings of a manifest: what was done to a folder on purpose
