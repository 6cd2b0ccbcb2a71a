"""Splits, content and neighbours -> shards and entity tables. The stage is `prepare.stage.prepare`."""
