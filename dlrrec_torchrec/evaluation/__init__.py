"""A trained model compared with baselines on the test rows. The stage is `evaluation.stage.evaluate`."""
