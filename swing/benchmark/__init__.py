"""`python -m swing.benchmark`: both sides of each comparison, from one run."""
