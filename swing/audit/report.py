"""The audit: read, measure, write audit.json with figures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swing.audit import lists, measures
from swing.audit.agreement import compare
from swing.config import SwingError

FORMAT = "swing audit 1"
FILES = ("audit.json", "coverage.png", "scores.png", "popularity.png", "agreement.png")


def audit(
    directory: str | Path,
    output: str | Path | None = None,
    *,
    other: str | Path | None = None,
    k: int = 10,
    threshold: float | Sequence[float] | None = None,
) -> dict[str, Any]:
    """Audit the finished output in `directory`; writes audit.json and figures, returns the report.

    `output`: a folder outside of the audited ones, by default `directory` with "-audit" at its end; an
    earlier audit there is replaced. `other`: a second output to compare the first k neighbours with (it is
    compared, not audited). `threshold`: scores above which positives are counted, by default quantiles of the
    scores. The report, with None for what is not defined:

    - `problems`: broken promises of the job, as text; `notes`: what could not be measured;
    - `coverage`: ids, those with a list, their share; `lists`: lengths;
    - `scores`: of all neighbours, and the best of each id: minimum, mean, maximum, quantiles (the least score
      that this share of the scores does not exceed), and a histogram over bins of equal ratio;
    - `thresholds`: neighbours with a greater score, and the ids that keep at least one;
    - `popularity`: see `swing.audit.measures.popularity`;
    - `by_degree`: sums over the ids of degree 0, 1, 2 to 3, 4 to 7, ...;
    - `agreement`: see `swing.audit.agreement.compare`.

    The degree of an id is its number of edges after the limits of the run. Numbers other than those of lists
    and coverage leave out neighbours that are no ids and scores that are not positive and finite.
    Raises SwingError for folders that are no finished outputs or cannot be read or written.
    """
    if k < 1:
        raise SwingError(f"k must be 1 or more, not {k}")
    folder = _output_folder(output, directory, other)
    output_lists = lists.read(directory)
    degree, wrong = lists.degrees(output_lists)
    report: dict[str, Any] = {
        "format": FORMAT,
        "directory": str(directory),
        "output": str(folder),
        "side": output_lists.manifest["side"],
        "parameters": output_lists.manifest["parameters"],
        "problems": lists.problems(output_lists) + wrong,
        "notes": [],
    }
    if degree is None:
        reason = (
            "cannot be trusted (see the problems)" if wrong else "is missing; do the run again to have it"
        )
        report["notes"].append(f"nothing is reported by degree: degrees.arrow {reason}")
    counts, known = output_lists.counts, output_lists.known()
    appearances = np.bincount(known.codes, minlength=len(counts))
    report["coverage"] = measures.coverage(counts)
    report["lists"] = measures.lengths(counts, output_lists.manifest["parameters"].get("top_k"))
    report |= measures.scores(output_lists, threshold)
    report["popularity"] = measures.popularity(known, appearances, degree)
    report["by_degree"] = [] if degree is None else measures.by_degree(degree, counts, appearances)
    if other is not None:
        report["agreement"] = compare(output_lists, lists.read(other, output_lists.rows), k)
    _write(folder, report, degree, appearances)
    return report


def _output_folder(output: str | Path | None, directory: str | Path, other: str | Path | None) -> Path:
    """Where to write. Raises SwingError for a folder that holds anything other than an earlier audit."""
    audited = [Path(path).resolve() for path in (directory, other) if path is not None]
    folder = Path(output).resolve() if output else audited[0].with_name(f"{audited[0].name}-audit")
    if any(folder.is_relative_to(path) for path in audited):
        raise SwingError(f"{folder}: is inside an audited folder; choose another folder with --output")
    if not folder.exists():
        return folder
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names:
        try:
            is_audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            is_audit = False
        if not is_audit or names - set(FILES):
            raise SwingError(f"{folder}: exists and is no earlier audit; choose another folder with --output")
    return folder


def _write(folder: Path, report: dict[str, Any], degree: np.ndarray | None, appearances: np.ndarray) -> None:
    # Imported here: matplotlib takes a second to load, which the other commands need not wait for.
    from swing.audit import figures

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        try:
            figures.scores(report, temporary / "scores.png")
            if degree is not None:
                figures.coverage(report, temporary / "coverage.png")
                figures.popularity(report, degree, appearances, temporary / "popularity.png")
            if "agreement" in report:
                figures.agreement(report, temporary / "agreement.png")
            text = json.dumps(report, indent=2, allow_nan=False)
            (temporary / "audit.json").write_text(text + "\n", encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise SwingError(f"{folder}: cannot be written: {error}") from error
