"""Running training steps: TorchRec's overlapped pipeline on a GPU, plain steps on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrrec_torchrec.data.batch import Batch


class Pipeline(Protocol):
    """Runs one training step per call of `progress`; raises StopIteration after the last batch."""

    def progress(self, batches: Iterator[Batch]) -> Any: ...

    def detach(self) -> nn.Module: ...


class PlainPipeline:
    """One step after the other, nothing overlapped: the reference, and what runs on a CPU."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device

    def progress(self, batches: Iterator[Batch]) -> Any:
        """One step on the next batch. Returns what the model returns beside its loss."""
        batch = next(batches).to(self.device)
        self.optimizer.zero_grad()
        loss, output = self.model(batch)
        loss.backward()
        self.optimizer.step()
        return output

    def detach(self) -> nn.Module:
        """The model, for use outside of the pipeline."""
        return self.model


def make_pipeline(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Pipeline:
    """TorchRec's pipeline on a GPU (copy, input distribution and compute overlap), else plain steps."""
    if device.type == "cuda":
        return TrainPipelineSparseDist(model, optimizer, device, execute_all_batches=True)
    return PlainPipeline(model, optimizer, device)
