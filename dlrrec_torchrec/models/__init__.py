"""DLRREC: projection towers inside a TorchRec DLRM, and the losses it trains with."""
