"""Training reviews -> summaries, vectors, price tags, categories. The stage is `extract.stage.extract`."""
