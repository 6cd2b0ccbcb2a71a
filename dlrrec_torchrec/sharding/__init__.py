"""Where embedding tables go: TorchRec's planner, what a plan costs (`planner`), and doing it (`apply`)."""
