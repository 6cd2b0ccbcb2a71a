"""What lies on disk: schemas, folders of Parquet, manifests, the paths of a run."""
