"""A trained model beside baselines on the test rows. The stage is `evaluation.stage.evaluate`."""
