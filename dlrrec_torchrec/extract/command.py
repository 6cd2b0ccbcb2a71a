"""What `dlrrec extract` does besides the stage (--estimate, show), and `dlrrec cache`."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.config.flags import add_command, at_least, run_settings
from dlrrec_torchrec.extract.llm.packages import check_packages
from dlrrec_torchrec.store.errors import DataError, Unfinished
from dlrrec_torchrec.store.paths import RunPaths, run_paths

Action = Callable[[argparse.Namespace], int]


@dataclasses.dataclass(frozen=True)
class _StageOrEstimate:
    """What `dlrrec extract` does; equal for parsers that are equal."""

    stage: Action

    def __call__(self, arguments: argparse.Namespace) -> int:
        return (_estimate if arguments.estimate else self.stage)(arguments)


def add_extract_modes(command: argparse.ArgumentParser, stage: Action) -> None:
    """Add to the stage's command, which `stage` runs, what else can be asked of content."""
    command.add_argument(
        "--estimate",
        action="store_true",
        help="print the calls, tokens and money that a language model would take, and do nothing else",
    )
    command.set_defaults(action=_StageOrEstimate(stage))
    modes = command.add_subparsers(title="further commands", metavar="")
    shown = add_command(
        modes,
        "show",
        "print the reviews, prompts and answers behind a user's or an item's content",
        "dlrrec extract show --user u00012 --run-dir runs/demo",
    )
    whose = shown.add_mutually_exclusive_group(required=True)
    whose.add_argument("--user", help="user id as in the reviews")
    whose.add_argument("--item", help="item id as in the reviews")
    shown.add_argument(
        "--fold", type=int, default=-1, help="the version without this fold's reviews (default: -1, of all)"
    )
    shown.set_defaults(action=_show)

    written = add_command(
        modes,
        "write-batch",
        "write the calls without an answer to a file, for `vllm run-batch` or OpenAI's Batch API",
        "dlrrec extract write-batch calls.jsonl --run-dir runs/demo",
    )
    written.add_argument("file", help="file to write, a call a line")
    written.set_defaults(action=_write_batch)
    taken = add_command(
        modes,
        "read-batch",
        "keep the answers of such a file, until write-batch finds no call left and `dlrrec extract` ends",
        "dlrrec extract read-batch answers.jsonl --run-dir runs/demo",
    )
    taken.add_argument("file", help="file of answers, one a line")
    taken.set_defaults(action=_read_batch)
    by_vllm = add_command(
        modes,
        "answer-batch",
        "answer the calls without an answer by vLLM on the GPUs of a Ray cluster",
        "dlrrec extract answer-batch --address auto --run-dir runs/demo --set llm.model=HUB_NAME_OR_FOLDER",
    )
    by_vllm.add_argument(
        "--address",
        default="",
        help="of the Ray cluster, HOST:PORT or auto (default: RAY_ADDRESS, else this machine)",
    )
    by_vllm.add_argument(
        "--gpus-per-model", type=at_least(1), default=1, help="GPUs of a node for each copy (default: 1)"
    )
    by_vllm.add_argument(
        "--model-tokens",
        type=at_least(1),
        help="tokens of a prompt and its answer, at most (default: the model's)",
    )
    by_vllm.set_defaults(action=_answer_batch)


def add_cache(commands: Any) -> None:
    """The command `cache`."""
    group = commands.add_parser(
        "cache", help="the answers of language models that a run keeps", description="What a run keeps."
    )
    ways = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    counted = add_command(
        ways, "stats", "count the answers and their tokens", "dlrrec cache stats --run-dir runs/demo"
    )
    counted.set_defaults(action=_stats)
    written = add_command(
        ways,
        "export",
        "write every answer as a line of JSON",
        "dlrrec cache export answers.jsonl --run-dir runs/demo",
    )
    written.add_argument("file", help="file to write")
    written.set_defaults(action=_export)
    pruned = add_command(
        ways, "prune", "forget answers, to have their space or to ask again", "dlrrec cache prune --failed"
    )
    pruned.add_argument("--failed", action="store_true", help="refusals and other unusable answers")
    pruned.add_argument("--unused", action="store_true", help="answers behind none of the run's content")
    pruned.add_argument("--model", help="answers of this model")
    pruned.set_defaults(action=_prune)


def _run(arguments: argparse.Namespace) -> tuple[RunConfig, list[RunPaths]]:
    config, folder = run_settings(arguments)
    if not folder.is_dir():
        raise DataError(f"--run-dir {folder}: there is no such folder")
    return config, run_paths(folder, config.seeds)


def _estimate(arguments: argparse.Namespace) -> int:
    check_packages()
    from dlrrec_torchrec.extract.llm.estimate import estimate

    config, (paths, *_) = _run(arguments)
    check_settings(config.extract, config.llm)
    print(estimate(config.extract, config.llm, paths.split, _items(paths), paths.cache).to_text())
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.extract.llm.show import show

    config, (paths, *_) = _run(arguments)
    side = "user" if arguments.user is not None else "item"
    entity = arguments.user if side == "user" else arguments.item
    print(show(config.extract, config.llm, paths, side, entity, arguments.fold))
    return 0


def _missing_calls(arguments: argparse.Namespace) -> tuple[RunConfig, Path, dict]:
    """The settings, the run's cache, and the calls that it has no answer to, by their keys."""
    check_packages()
    from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
    from dlrrec_torchrec.extract.llm.batch_files import collected
    from dlrrec_torchrec.extract.llm.questions import Questions
    from dlrrec_torchrec.extract.new_items import described_entities

    config, (paths, *_) = _run(arguments)
    check_settings(config.extract, config.llm)
    questions, missing = Questions(config.llm, config.extract.summary_sentences), {}
    with AnswerStore(paths.cache) as store:
        for texts, entities in described_entities(config.extract, paths.split, _items(paths)):
            missing |= collected(store, questions.about(texts), entities)[1]
    return config, paths.cache, missing


def _items(paths: RunPaths) -> Path | None:
    """The folder of the items' metadata, where there is one."""
    return paths.items if (paths.items / "manifest.json").exists() else None


def _write_batch(arguments: argparse.Namespace) -> int:
    config, _, missing = _missing_calls(arguments)
    from dlrrec_torchrec.extract.llm.batch_files import write_requests

    number = write_requests(missing.values(), config.llm.structured != "off", Path(arguments.file))
    print(f"{number:,} calls: {arguments.file}")
    return 0


def _read_batch(arguments: argparse.Namespace) -> int:
    _, cache, missing = _missing_calls(arguments)
    from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
    from dlrrec_torchrec.extract.llm.batch_files import read_replies

    try:
        lines = Path(arguments.file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{arguments.file}: cannot be read: {error}") from None
    with AnswerStore(cache) as store:
        kept = 0
        for key, reply in read_replies(lines, arguments.file, missing):
            store.put(missing[key].head, reply)
            kept += 1
    told = sum(map(bool, map(str.strip, lines)))
    print(f"{kept:,} of {told:,} answers kept; {len(missing) - kept:,} of these calls have none")
    return 0


def _answer_batch(arguments: argparse.Namespace) -> int:
    config, cache, missing = _missing_calls(arguments)
    from dlrrec_torchrec.extract.cluster.connection import RayCluster
    from dlrrec_torchrec.extract.cluster.vllm_answers import answered
    from dlrrec_torchrec.extract.llm.answer_store import AnswerStore

    other = "write-batch writes the calls to a file for `vllm run-batch`"
    cluster = RayCluster(arguments.address, other)
    while missing:
        reasons: Counter[str] = Counter()
        asked = cluster, missing.values(), config.llm, arguments.gpus_per_model, arguments.model_tokens
        with AnswerStore(cache) as store:
            for key, reply in answered(*asked):
                if isinstance(reply, str):
                    reasons[reply] += 1
                else:
                    store.put(missing[key].head, reply)
        print(f"{len(missing) - reasons.total():,} of {len(missing):,} calls answered", flush=True)
        if reasons.total() == len(missing):
            reason, number = reasons.most_common(1)[0]
            raise Unfinished(
                f"vLLM answers none of {len(missing):,} calls: {reason} ({number:,}); all other answers are "
                "kept, and the same command asks these again"
            )
        missing = _missing_calls(arguments)[2]  # other attempts, and summaries of parts
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    check_packages()
    from dlrrec_torchrec.extract.llm.housekeeping import stats

    config, (paths, *_) = _run(arguments)
    print(stats(paths.cache, config.llm.language))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    check_packages()
    from dlrrec_torchrec.extract.llm.housekeeping import export

    _, (paths, *_) = _run(arguments)
    print(f"{export(paths.cache, Path(arguments.file)):,} answers: {arguments.file}")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    check_packages()
    from dlrrec_torchrec.extract.llm.housekeeping import prune

    config, every = _run(arguments)
    contents = [folder for paths in every for folder in (paths.content, paths.refitted.content)]
    chosen = {"failed": arguments.failed, "unused": arguments.unused, "model": arguments.model}
    number = prune(every[0].cache, config.llm.language, contents, **chosen)
    print(
        f"{number:,} answers forgotten; content that is up to date stays as it is: to ask again, delete the"
    )
    print(f"folder {every[0].content} too")
    return 0
