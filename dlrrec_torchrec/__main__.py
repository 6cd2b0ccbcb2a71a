"""`python -m dlrrec_torchrec` is the `dlrrec` command; `torchrun -m dlrrec_torchrec train` starts N ranks."""

from dlrrec_torchrec.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
