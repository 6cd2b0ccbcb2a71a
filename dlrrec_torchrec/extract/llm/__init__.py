"""Content by a language model: prompts, calls, answers and their cache, costs, batches."""
