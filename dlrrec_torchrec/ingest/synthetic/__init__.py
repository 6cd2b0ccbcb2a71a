"""An invented world of restaurants with known true probabilities, from `write.write_world`."""
