"""The training step compared with plain torch's, on CPUs and on a GPU."""
