"""Parquet shards -> batches, and the entity tables for serving."""
