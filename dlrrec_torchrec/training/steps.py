"""Running training steps: TorchRec's overlapped pipeline on a GPU, plain steps on a CPU.

A step is forward, backward and update on one batch; with `accumulate`, on its micro-batches in turn, with one
update at the end. Regions of a step have names in the profiler's traces (REGIONS).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function
from torchrec.distributed.model_parallel import get_module, get_unwrapped_module
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrrec_torchrec.data.batch import Batch, split_rows
from dlrrec_torchrec.distributed.lockstep import host_group
from dlrrec_torchrec.training.optimizers import dense_parameters

REGIONS = ("data wait", "copy", "forward", "backward", "optimizer")


class Pipeline(Protocol):
    """Runs one training step per call of `progress`; raises StopIteration after the last batch.

    `before_update`, where it is set, is called when a step's gradients are complete and not yet clipped.
    """

    before_update: Callable[[], Any] | None

    def progress(self, batches: Iterator[Batch]) -> dict[str, Tensor]: ...

    def detach(self) -> nn.Module: ...


class _Steps:
    """What both pipelines share: micro-batches, precision, clipping.

    The loss of a step is the mean of its micro-batches' losses, weighted by their rows over all ranks. So the
    loss of the predictions is the mean over all rows of the step, as without accumulation; a contrastive term
    is the weighted mean of the micro-batches' means over their valid anchors. Corpus negatives are the same
    in all of a step; batch normalisation, and negatives from the batch, see one micro-batch.

    Args:
        model: returns (loss, outputs), as TrainWrapper; DDP, where there is any, is around it.
        optimizer: of tables and dense part.
        device: where batches go.
        precision: "fp32", or "bf16" for autocast of the forward pass: parameters stay f32.
        clip_norm: largest norm of the dense part's gradients together, 0 for any. Tables are not part of it:
            fused ones are updated within the backward pass.
        accumulate: micro-batches of a step; fused tables are updated after each of them. Ranks exchange
            gradients after the last.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        precision: str = "fp32",
        clip_norm: float = 0.0,
        accumulate: int = 1,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.before_update: Callable[[], Any] | None = None
        self._half, self._clip, self._number = precision == "bf16", clip_norm, accumulate
        self._fetched: deque[deque[float]] = deque()  # weights of the micro-batches of fetched steps
        self._left: deque[float] = deque()  # of the current step
        self._weights: list[float] = []  # of those that are done

    @property
    def _midway(self) -> bool:
        """Whether some of the step's micro-batches are done, and some are not."""
        return bool(self._left)

    def _micro_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            parts = split_rows(batch, min(self._number, len(batch)))
            self._fetched.append(deque(_weights(parts)))
            yield from parts

    def _forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss to go backward from, outputs) of the next micro-batch."""
        step = ()
        if self._left:  # the draws are those of the previous micro-batch
            step = (get_unwrapped_module(self.model).step - 1,)
        else:
            self._left, self._weights = self._fetched.popleft(), []
        weight = self._left.popleft()
        self._weights.append(weight)
        module = get_module(self.model)
        alone = self._midway and isinstance(module, DistributedDataParallel)
        with (
            record_function("forward"),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._half),
            module.no_sync() if alone else contextlib.nullcontext(),
        ):
            loss, outputs = self.model(batch, *step)
        return loss if weight == 1 else loss * weight, outputs

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the last step; in the middle of one, do nothing."""
        if not self._midway:
            self.optimizer.zero_grad(set_to_none=set_to_none)

    def update(self) -> None:
        """Clip and update; in the middle of a step, do nothing."""
        if self._midway:
            return
        with record_function("optimizer"):
            if self.before_update is not None:
                self.before_update()
            if self._clip:
                nn.utils.clip_grad_norm_(dense_parameters(self.optimizer), self._clip)
            self.optimizer.step()

    def _joined(self, outputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A step's outputs: rows one after the other, losses as weighted means."""
        if len(outputs) == 1:
            return outputs[0]
        joined = {}
        for name, first in outputs[0].items():
            values = [output[name] for output in outputs]
            weighted = zip(self._weights, values, strict=True)
            joined[name] = torch.cat(values) if first.ndim else sum(w * v for w, v in weighted)
        return joined


class PlainPipeline(_Steps):
    """One step after the other, nothing overlapped: the reference, and what runs on a CPU."""

    def progress(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One step on the next batch. Returns what the model returns besides its loss."""
        parts, outputs = self._micro_batches(batches), []
        while not outputs or self._midway:
            batch = next(parts)
            with record_function("copy"):
                batch = batch.to(self.device)
            self.zero_grad()
            loss, output = self._forward(batch)
            with record_function("backward"):
                loss.backward()
            outputs.append(output)
        self.update()
        return self._joined(outputs)

    def detach(self) -> nn.Module:
        """The model, for use outside of the pipeline."""
        return self.model


class MicroBatchOptimizer:
    """What TorchRec's pipeline, which knows no micro-batches, calls as its optimizer after each of them.

    Gradients are cleared and weights updated only where a whole step begins and ends.
    """

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._steps.zero_grad(set_to_none)

    def step(self) -> None:
        self._steps.update()


class OverlappedPipeline(_Steps):
    """TorchRec's TrainPipelineSparseDist: while a batch is computed, the next one's ids travel between the
    ranks and the one after it is copied to the device.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, **options: Any
    ) -> None:
        super().__init__(model, optimizer, device, **options)
        self._pipeline = TrainPipelineSparseDist(
            model, MicroBatchOptimizer(self), device, execute_all_batches=True, custom_model_fwd=self._forward
        )
        self._source: Iterator[Batch] | None = None
        self._parts: Iterator[Batch] = iter(())

    def progress(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One step on the next batch. Returns what the model returns besides its loss."""
        if batches is not self._source:
            self._source, self._parts = batches, self._micro_batches(batches)
        outputs: list[dict[str, Tensor]] = []
        while not outputs or self._midway:
            outputs.append(self._pipeline.progress(self._parts))
        return self._joined(outputs)

    def detach(self) -> nn.Module:
        """The model, for use outside of the pipeline; the next step takes it back."""
        return self._pipeline.detach()


def make_pipeline(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, **options: Any
) -> Pipeline:
    """Overlapped steps on a GPU, else plain ones.

    Args:
        options: precision, clip_norm, accumulate, as in `_Steps`.
    """
    kind = OverlappedPipeline if device.type == "cuda" else PlainPipeline
    return kind(model, optimizer, device, **options)


def _weights(parts: list[Batch]) -> list[float]:
    """The shares of a step's rows, over all ranks, in its micro-batches. Call it on all ranks."""
    if len(parts) == 1:
        return [1.0]
    rows = torch.tensor([float((part.label >= 0).sum()) for part in parts], dtype=torch.float64)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(rows, group=host_group("batches"))
    return (rows / rows.sum().clamp(min=1)).tolist()
