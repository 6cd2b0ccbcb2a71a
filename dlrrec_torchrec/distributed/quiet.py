"""Hides known warnings of torch, TorchRec and FBGEMM that say nothing about how this package uses them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

# Starts of messages given by Python's warnings, as regular expressions.
WARNINGS = (
    "HeuristicalStorageReservation is known to cause issues",  # in dry runs for other machines
    "`broadcast_buffers` is deprecated",  # TorchRec's own call
    "torch.distributed is disabled, unavailable or uninitialized",  # a checkpoint read by one process
    # Its gradients equal those of torch's EmbeddingBag: a test of the training holds that.
    "fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel was not registered",
    # Its updates equal the formula's: the benchmark of tables checks that before it measures.
    r"\s*\x1b\[93m\s*\[FBGEMM_GPU\] NOTE: The training optimizer 'adam' is marked as",
    "TBE B200 optimization",  # of a kernel that an older GPU does not take
    "`_get_pg_default_device` will be deprecated",  # TorchRec's own call
    "Please use DTensor instead and we are deprecating ShardedTensor",  # TorchRec's tables are such
)
# Logger -> parts of its messages.
LOGGED = {
    "root": ("Sharding spec not found for",),  # replicated tables have none
    "torchrec.distributed.utils": ("caching params will be ignored",),  # there are none
    "torchrec.distributed.planner.storage_reservations": ("in dry run scenarios",),
    "torchrec.distributed.planner.types": ("The topology was constructed directly",),  # on purpose
    "torch.fx._symbolic_trace": ("is_fx_tracing will return true",),
}


def quiet_imports() -> None:
    """Leave out, from now on, what FBGEMM logs for each of its libraries when it is imported.

    Its table of torch's versions ends before its own version; `dlrrec doctor` knows which fit together.
    """
    logging.getLogger().addFilter(lambda record: "_fbgemm_torch_compat_table" not in record.getMessage())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the known warnings during the block; all others are shown."""

    def unknown(record: logging.LogRecord) -> bool:
        return not any(part in record.getMessage() for part in LOGGED[record.name])

    loggers = [logging.getLogger(name) for name in LOGGED]
    with warnings.catch_warnings():
        for start in WARNINGS:
            warnings.filterwarnings("ignore", message=start)
        for logger in loggers:
            logger.addFilter(unknown)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(unknown)
