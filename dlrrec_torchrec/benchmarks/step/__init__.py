"""The training step beside plain torch's, on CPUs and on a GPU."""
