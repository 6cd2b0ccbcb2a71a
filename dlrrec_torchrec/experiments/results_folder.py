"""The folder of an experiment's results: whose it is, and who works in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from dlrrec_torchrec.experiments.definitions import Experiment, Group
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import hold, write_text_atomic

MARK = "experiment.json"  # {"name": the experiment, "groups": {folder of a group: its data}}
_SHARES = ".shares"
_BUSY = "an experiment is under way here"


def default_folder(name: str, data: list[str], usual: str, quick: bool) -> Path:
    """runs/NAME, with the data's name where it is one and not the usual one: what was trained on other data
    stays. Groups of several data have the data's names themselves."""
    parts = [name, *(data if len(data) == 1 and data != [usual] else []), *(["quick"] if quick else [])]
    return Path("runs") / "-".join(parts)


@contextlib.contextmanager
def results_folder(out: Path, experiment: Experiment, share: tuple[int, int] = (0, 1)) -> Iterator[None]:
    """Make `out` if it is not there, and hold it during the block: alone, or as one of N shares.

    Args:
        share: (K, N).

    Raises DataError, before anything is changed, where it holds anything but this experiment's results, or
    results of other data under the name of one of its groups, and where another call works in it.
    """
    groups = {group.name: _data(group) for group in experiment.groups}
    _checked(out, experiment.name, groups)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        _hold(out, held, shared=share[1] > 1)
        if share[1] > 1:
            own = out / _SHARES / f"{share[0]}-of-{share[1]}"
            own.mkdir(parents=True, exist_ok=True)
            _hold(own, held)
        known = _checked(out, experiment.name, groups)  # again, as another call may just have ended
        body = {"name": experiment.name, "groups": known | groups}
        write_text_atomic(out / MARK, json.dumps(body, indent=2) + "\n")
        yield


def _data(group: Group) -> str:
    """What a group's data are called, with the name of the file of reviews: two of one form are two."""
    reviews = Path(group.config.ingest.reviews).name
    return group.levels["data"] + (f" ({reviews})" if reviews else "")


def _hold(folder: Path, held: contextlib.ExitStack, shared: bool = False) -> None:
    if (descriptor := hold(folder, _BUSY, shared)) is not None:
        held.callback(os.close, descriptor)


def _checked(out: Path, name: str, groups: dict[str, str]) -> dict[str, str]:
    """The groups that are there already, with their data."""
    if os.path.lexists(out) and not out.is_dir():
        raise DataError(f"--out {out}: is no folder; give another name")
    try:
        body = json.loads((out / MARK).read_text(encoding="utf-8"))
        found, known = body["name"], dict(body["groups"])
    except FileNotFoundError:
        # What begins with a dot is another share's, which begins in this moment.
        if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise DataError(
                f"--out {out}: holds something else, no results of an experiment (there is no {MARK}); "
                "nothing was changed: give another --out"
            ) from None
        return {}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{out / MARK}: damaged; give another --out, or delete {out}") from None
    if found != name:
        raise DataError(
            f"--out {out}: holds the experiment '{found}', not '{name}'; nothing was changed: give another "
            "--out"
        )
    for group, data in groups.items():
        if known.get(group, data) != data:
            raise DataError(
                f"--out {out}: holds '{group}' trained on '{known[group]}', not on '{data}'; nothing was "
                "changed: give another --out"
            )
    return known
