"""Sources of reviews -> the review table: `ingest.stage.ingest`, and a file for each form in `sources`."""
