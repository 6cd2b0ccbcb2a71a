"""Reviews -> training, validation and test rows. The stage is `split.stage.split`."""
