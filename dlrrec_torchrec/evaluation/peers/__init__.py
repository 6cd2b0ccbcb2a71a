"""Other people's methods on the same rows: what a trained model is to be measured against."""
