"""Lists of items measured against what users chose, for training and for evaluation."""
