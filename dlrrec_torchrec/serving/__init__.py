"""A trained model at work: loading it, scoring pairs, recommending. Imports no training."""
