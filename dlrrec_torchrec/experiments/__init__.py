"""Experiments on prepared data and trained models. `command.add_audit` adds `dlrrec audit`."""
