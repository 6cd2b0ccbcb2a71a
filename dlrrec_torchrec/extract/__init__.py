"""Training reviews -> summaries, vectors, price tags, categories."""

from dlrrec_torchrec.extract.stage import extract

__all__ = ["extract"]
