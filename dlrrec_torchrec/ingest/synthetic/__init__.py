"""A made-up world of restaurants whose true probabilities are known. `write.write_world` makes one."""
