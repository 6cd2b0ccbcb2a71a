"""DLRREC on TorchRec: LLM knowledge, co-trained projection towers and SWING-guided contrast in a DLRM."""

import os

# OpenMP reads this once, when torch is loaded. By default threads that wait for each other spin: two threads
# on two cores that had other work to do, too, trained 15 times slower than with this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

from dlrrec_torchrec.distributed.quiet import quiet_imports

quiet_imports()
