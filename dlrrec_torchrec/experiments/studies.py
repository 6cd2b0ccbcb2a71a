"""Where the trials of `dlrrec tune` are kept: a journal of optuna's, for one process at a time.

A journal holds a study for each configuration, search space and set of shards that was asked for, so that
nothing is mixed and nothing is lost: asked the same again, a study goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlrrec_torchrec.store.errors import DataError

JOURNAL = "trials.journal"
# Of the median pruner: finished trials before it begins, epochs of a trial that it lets pass, and trials that
# must have come as far as the one it judges.
_STARTUP, _WARMUP, _COMPARED = 5, 4, 3


def import_optuna() -> Any:
    """The package optuna. Raises DataError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise DataError("tune: needs optuna: pip install 'dlrrec-torchrec[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the operating system lets go of it when the process ends, even killed.

    Raises DataError where another process holds it.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace").strip() or "just started"
            raise DataError(
                f"{folder}: another `dlrrec tune` works here (process {holder}); wait for it, or stop it: "
                "this command then goes on from its trials"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(lock)


def open_study(folder: Path, name: str) -> tuple[Any, int]:
    """The study of this name in the journal of `folder`, to maximise; and the trials of other studies, if it
    is new. Call it within `claimed`.
    """
    optuna = import_optuna()
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    _mend(path)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    others = [study for study in optuna.get_all_study_summaries(storage) if study.study_name != name]
    is_new = len(others) == len(optuna.get_all_study_summaries(storage))
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(_STARTUP, _WARMUP, n_min_trials=_COMPARED),
    )
    return study, sum(other.n_trials for other in others) if is_new else 0


def next_trial(study: Any, seed: int) -> Any:
    """The trial that a killed process left, else a new one.

    The sampler depends on the seed, the trial's number and the finished trials alone, so that a study that
    was interrupted draws what it would have drawn.
    """
    optuna = import_optuna()
    left = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    number = left[0].number if left else len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed + 100_003 * number, multivariate=True)
    return optuna.trial.Trial(study, left[0]._trial_id) if left else study.ask()


def _mend(path: Path) -> None:
    """Take away what a process that was killed while it wrote left: half a line, and optuna's own lock."""
    for stale in path.parent.glob(f"{path.name}.lock*"):
        stale.unlink(missing_ok=True)
    if path.exists():
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(path, whole)
