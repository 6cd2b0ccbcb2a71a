"""This process among N ranks: the process group, agreements, sums over all ranks."""
