"""DLRREC on TorchRec: LLM knowledge, co-trained projection towers and SWING-guided contrast in a DLRM."""

__version__ = "0.1.0"
