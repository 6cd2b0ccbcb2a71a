"""Calls answered by vLLM on the GPUs of a Ray cluster, through the processor of Ray Data LLM.

Without a server: the processor's actors hold the model, one to so many GPUs. A lost actor's rows are redone
by Ray. Answers come in any order, a batch of rows at a time, and are kept: a command that was killed goes on
with what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from dlrrec_torchrec.config.llm_section import LlmConfig
from dlrrec_torchrec.extract.cluster.connection import RayCluster
from dlrrec_torchrec.extract.llm.calls import Call, Reply
from dlrrec_torchrec.store.errors import DataError

_LIMIT_NAME = "max_tokens"
_KEPT = ("key", "limit", "generated_text", "num_generated_tokens", "num_input_tokens")
_ERROR = "__inference_error__"  # Ray's column: why a row has no answer


def answered(
    cluster: RayCluster, calls: Collection[Call], settings: LlmConfig, gpus: int, model_tokens: int | None
) -> Iterator[tuple[str, Reply | str]]:
    """Yield (key of a call, its reply, or in words why it has none) as they come.

    Args:
        gpus: for each copy of the model.
        model_tokens: of a prompt and its answer together, at most; None: as many as the model takes.

    Raises DataError where packages or GPUs are missing, and for settings that vLLM cannot follow.
    """
    if settings.reasoning_effort in ("minimal", "low", "medium", "high"):
        raise DataError(
            f"llm.reasoning_effort: vLLM through Ray has no effort '{settings.reasoning_effort}'; set "
            "llm.reasoning_effort=unset"
        )
    try:
        import vllm  # noqa: F401
        from ray import data
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    except ImportError as error:
        raise DataError(
            f"extract answer-batch needs Ray's packages for language models ({error}): "
            "pip install 'ray[data,llm]==2.60.0'; write-batch writes the calls to a file for `vllm run-batch`"
        ) from None
    copies = sum(int(node.get("GPU", 0) // gpus) for node in cluster.resources())
    if not copies:
        raise DataError(
            f"--gpus-per-model {gpus}: no node of the Ray cluster has so many GPUs; give a smaller number, "
            "or the --address of a cluster that has them"
        )
    engine: dict[str, Any] = {"tensor_parallel_size": gpus}
    if model_tokens is not None:
        engine["max_model_len"] = model_tokens
    config = vLLMEngineProcessorConfig(
        model_source=settings.model,
        engine_kwargs=engine,
        concurrency=(1, copies),
        should_continue_on_error=True,
        detokenize_stage=False,  # the engine does it
    )
    rows = [_row(call, settings.structured != "off") for call in calls]
    with cluster:
        cluster.connect()
        for row in build_processor(config, postprocess=_kept)(data.from_items(rows)).iter_rows():
            yield row["key"], row[_ERROR] or _reply(row)


def _row(call: Call, structured: bool) -> dict[str, Any]:
    """A call as the processor takes it. All rows have the same columns, as Arrow wants; a schema is text."""
    body = call.body(structured, _LIMIT_NAME)
    sampling = {_LIMIT_NAME: body[_LIMIT_NAME]}
    if "temperature" in body:
        sampling["temperature"] = float(body["temperature"])
    if structured:
        schema = body["response_format"]["json_schema"]["schema"]
        sampling["structured_outputs"] = {"json": json.dumps(schema)}
    row = {"key": call.key, "limit": body[_LIMIT_NAME], "messages": body["messages"]}
    return row | {"sampling_params": sampling}


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _KEPT}


def _reply(row: dict[str, Any]) -> Reply:
    """The processor does not say why an answer ended; one as long as its limit was cut there."""
    finish = "length" if row["num_generated_tokens"] >= row["limit"] else "stop"
    return Reply(
        row["generated_text"],
        finish,
        input_tokens=int(row["num_input_tokens"]),
        output_tokens=int(row["num_generated_tokens"]),
    )
