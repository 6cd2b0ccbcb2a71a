"""`dlrrec bench`: the group of benchmark commands. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlrrec_torchrec.benchmarks.cases import (
    EmbeddingCase,
    EncodeCase,
    FeaturesCase,
    LoaderCase,
    StagesCase,
    TrainCase,
    parse_sweeps,
    product,
)
from dlrrec_torchrec.config.flags import add_command, add_flags, given_settings
from dlrrec_torchrec.distributed.launcher import is_first_rank
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import write_text_atomic

EMBEDDINGS_EXAMPLE = """dlrrec bench embeddings --sweep pooling=1,11,50
dlrrec bench embeddings --sweep distribution=uniform,zipf --sweep rows=100000,1000000 --optimizer sgd
dlrrec bench embeddings --world-size 2 --sharding table_wise"""
TRAIN_NOTE = """dlrrec: with both contrastive terms; bce: without. Before anything is timed, both sides
must have computed the same losses from equal weights, before and after an update."""
TRAIN_EXAMPLE = """dlrrec bench train
dlrrec bench train --loader --rounds 3 --warmup 1
dlrrec bench train --batch 16384 --precision bf16 --device cuda
torchrun --nproc_per_node 2 -m dlrrec_torchrec bench train"""
TRAIN_LEGEND = (
    "medians (p10 to p90); ratios are of the same round. Parts: each without those it contains; profiling\n"
    "itself takes time, so read their shares."
)
LOADER_NOTE = """Kinds of rows: `vectors` (all that training reads), `ids` (the same without the vectors),
`ids without positives`. The JSON names the columns that each reads."""
LOADER_EXAMPLE = """dlrrec bench loader
dlrrec bench loader --shards runs/demo/shards --modalities user_text item_text
dlrrec bench loader --workers 0 1 4 --rounds 10"""
LOADER_LEGEND = (
    "medians (p10 to p90). per CPU second: by the processor's time, which other work changes less.\n"
    "plain read + copy: of the loader's time, what a plain read of the same bytes of the files and\n"
    "a copy of its batches' bytes take."
)


FEATURES_NOTE = """Users and items are drawn by Zipf's law; each size is measured in a process of its own."""
FEATURES_EXAMPLE = """dlrrec bench features
dlrrec bench features --rows 100000 1000000 10000000 --items 100000"""
SLOPE = "slope of log seconds by log rows, smallest to largest: {:.2f}"
FEATURES_LEGEND = (
    "fit: once on all rows. columns: the features of as many pairs. prepare: as many fits as folds and one\n"
    "more, and the columns once. 1 user: against all items, as serving does."
)
STAGES_NOTE = """The encoder makes vectors from a hash of each text, so the time of encoding is not in it."""
STAGES_EXAMPLE = """dlrrec bench stages
dlrrec bench stages --rows 200000 2000000 --folder /scratch"""
STAGES_LEGEND = (
    "cpu s: of the processor, all threads. peak: memory of the process alone, without files that it maps.\n"
    "by size: slope of the logarithm by log reviews, smallest to largest; 1 grows with the reviews."
)
ENCODE_EXAMPLE = """dlrrec bench encode
dlrrec bench encode --sentences 1000 --batch-tokens 4096 --workers 1
dlrrec bench encode --precision int8"""
ENCODE_LEGEND = (
    "load: until the first vector, torch's import not counted. s: of all texts, with the start of dlrrec's\n"
    "threads or processes. ratio: of the same round."
)


def add_bench(commands: Any) -> None:
    """Add `bench` and its sub-commands to the `dlrrec` parser's sub-commands."""
    bench = commands.add_parser("bench", help="measure parts of the system on this machine")
    parts = bench.add_subparsers(title="benchmarks", metavar="PART", required=True)
    line = "embedding tables: FBGEMM's against torch.nn.EmbeddingBag and a plain memory copy"
    embeddings = _add(parts, "embeddings", EmbeddingCase, line, EMBEDDINGS_EXAMPLE, _embeddings)
    embeddings.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FLAG=V1,V2,...",
        help="measure with each of these values; several sweeps: with each combination",
    )
    line = "the whole training step and its parts, against the same model in plain torch"
    _add(parts, "train", TrainCase, line, TRAIN_EXAMPLE, _train, TRAIN_NOTE)
    line = "rows per second from shards to batches, against a plain read and copy of the same bytes"
    _add(parts, "loader", LoaderCase, line, LOADER_EXAMPLE, _loader, LOADER_NOTE)
    line = "affinity features: rows per second, memory, and how both grow with the rows"
    _add(parts, "features", FeaturesCase, line, FEATURES_EXAMPLE, _features, FEATURES_NOTE)
    line = "seconds and memory of split, extract, swing and prepare, and how both grow with the reviews"
    _add(parts, "stages", StagesCase, line, STAGES_EXAMPLE, _stages, STAGES_NOTE)
    line = "sentences to vectors, against sentence-transformers as it comes"
    _add(parts, "encode", EncodeCase, line, ENCODE_EXAMPLE, _encode)


def _add(
    parts: Any, name: str, case: type, line: str, example: str, action: Callable, note: str = ""
) -> argparse.ArgumentParser:
    """A benchmark's command: every field of `case` is a flag."""
    command = add_command(parts, name, line, example, note=note, of_run=False)
    add_flags(command, case)
    command.add_argument("--out", default="runs/bench", help="folder of the results (default: runs/bench)")
    command.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    command.set_defaults(action=action)
    return command


def _measure(
    arguments: argparse.Namespace,
    name: str,
    case: Any,
    run: Callable[..., dict[str, Any]],
    shown: Callable[[dict[str, Any]], Sequence[str]],
) -> int:
    """Run a benchmark of one process; write NAME.json, and print it or what is `shown` of it."""
    from dlrrec_torchrec.benchmarks.machine import describe_machine

    out = Path(arguments.out)
    _make_folder(out)
    report = {"benchmark": name, "machine": describe_machine()} | run(case, say=_progress)
    _publish(report, out / f"{name}.json", arguments.json, shown(report))
    return 0


def _loader(arguments: argparse.Namespace) -> int:
    case = LoaderCase(**given_settings(arguments))
    from dlrrec_torchrec.benchmarks.format import align
    from dlrrec_torchrec.benchmarks.loading import format_loader, run

    return _measure(
        arguments, "loader", case, run, lambda report: [align(format_loader(report)), LOADER_LEGEND]
    )


def _features(arguments: argparse.Namespace) -> int:
    case = FeaturesCase(**given_settings(arguments))
    from dlrrec_torchrec.benchmarks.features import format_features, run
    from dlrrec_torchrec.benchmarks.format import align

    def shown(report: dict[str, Any]) -> list[str]:
        slope = report["slope"]
        told = [] if slope is None else [SLOPE.format(slope)]
        return [align(format_features(report)), *told, FEATURES_LEGEND]

    return _measure(arguments, "features", case, run, shown)


def _stages(arguments: argparse.Namespace) -> int:
    case = StagesCase(**given_settings(arguments))
    from dlrrec_torchrec.benchmarks.format import align
    from dlrrec_torchrec.benchmarks.stages import format_stages, run

    return _measure(
        arguments, "stages", case, run, lambda report: [align(format_stages(report)), STAGES_LEGEND]
    )


def _encode(arguments: argparse.Namespace) -> int:
    case = EncodeCase(**given_settings(arguments))
    from dlrrec_torchrec.benchmarks.encoding import format_check, format_encoding, run
    from dlrrec_torchrec.benchmarks.format import align

    def shown(report: dict[str, Any]) -> list[str]:
        return [align(format_encoding(report)), format_check(report["check"]), ENCODE_LEGEND]

    return _measure(arguments, "encode", case, run, shown)


def _train(arguments: argparse.Namespace) -> int:
    case, out = TrainCase(**given_settings(arguments)), Path(arguments.out)
    from dlrrec_torchrec.benchmarks.format import align, draw_training
    from dlrrec_torchrec.benchmarks.machine import describe_machine
    from dlrrec_torchrec.benchmarks.step.measure import format_training, run

    first = is_first_rank()
    if first:
        _make_folder(out)
    report = {"benchmark": "train", "machine": describe_machine()}
    report |= run(case, say=_progress if first else lambda line: None)
    if first:
        draw_training(report, out / "train.png")
        tables = "\n\n".join(map(align, format_training(report)))
        _publish(report, out / "train.json", arguments.json, [tables, "", TRAIN_LEGEND])
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _publish(report: dict[str, Any], path: Path, as_json: bool, shown: Sequence[str]) -> None:
    """Write the JSON; print it, or what is shown of it."""
    text = json.dumps(report, indent=2)
    write_text_atomic(path, text + "\n")
    print(text if as_json else "\n".join([*shown, f"written: {path}"]))


def _embeddings(arguments: argparse.Namespace) -> int:
    cases = product(given_settings(arguments), parse_sweeps(arguments.sweep))
    from dlrrec_torchrec.benchmarks.embeddings.compare import run
    from dlrrec_torchrec.benchmarks.format import draw, format_table
    from dlrrec_torchrec.benchmarks.machine import describe_machine

    first = is_first_rank()
    out = Path(arguments.out)
    if first:
        _make_folder(out)
    machine = describe_machine()
    quiet = arguments.json or not first
    results = run(cases, say=lambda line: None) if quiet else run(cases, say=print)
    if not first:
        return 0
    text = json.dumps({"benchmark": "embeddings", "machine": machine, "results": results}, indent=2)
    write_text_atomic(out / "embeddings.json", text + "\n")
    draw(results, out / "embeddings.png")
    if arguments.json:
        print(text)
    else:
        print(format_table(results))
        print("ratio: torch's time / FBGEMM's. of copy: the bytes that must move at least, against a copy's.")
        print(f"written: {out / 'embeddings.json'}, {out / 'embeddings.png'}")
    return 0


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {path}: {error.strerror}") from None
