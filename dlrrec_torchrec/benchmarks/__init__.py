"""Measurements: embedding tables (`dlrrec bench embeddings`), and all that needs a GPU (`benchmarks.gpu`)."""
