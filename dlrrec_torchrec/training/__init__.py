"""Shards -> a trained model. The stage is `training.stage.train`."""
