"""torch.compile of the dense part's plain layers."""

from __future__ import annotations

import torch
from torch._dynamo import config as dynamo
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils._triton import has_triton

from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.mmrec import Reduction
from dlrrec_torchrec.store.errors import DataError


def compile_dense(model: DLRREC | Reduction, device: torch.device, backend: str = "inductor") -> None:
    """Compile, when they first run, the towers' linear layers, the dense and top MLPs, the
    interaction and the residual path.

    Parameters and their names stay as they are. Normalisation over the ranks and the contrastive terms stay
    eager: their collectives and masks break graphs.

    Args:
        backend: of torch.compile.

    Raises:
        DataError: there is no compiler for the device.
    """
    check_compiler(device)
    # TorchRec's pipeline traces the model to find where ids go: there, compiled layers count as plain ones.
    dynamo.error_on_nested_fx_trace = False
    for tower in model.dense_arch.towers.values():
        tower.layers.compile(backend=backend)
    if isinstance(model, Reduction):
        return
    residual = [] if model.residual is None else [model.residual.layers]
    for part in (model.dense_arch.model, model.inter_arch, model.over_arch, *residual):
        part.compile(backend=backend)


def check_compiler(device: torch.device) -> None:
    """Raise DataError where there is no compiler for the device."""
    if device.type == "cuda":
        if not has_triton():
            raise DataError("--compile: needs Triton for GPUs, which is not installed; leave it off")
    else:
        try:
            get_cpp_compiler()
        except Exception as error:
            raise DataError(
                "--compile: needs a C++ compiler, and there is none; install g++, name one in the "
                "variable CXX, or leave it off"
            ) from error
