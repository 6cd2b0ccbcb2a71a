"""Calls answered through Ray Data LLM's processor. vLLM and a GPU are not here: a processor stands in whose
settings, columns and wrapping of rows are read from Ray's own source."""

from __future__ import annotations

import ast
import json
import shutil
import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.extract.cluster.connection import RayCluster
from tests.extract.llm.test_asking import ROWS, run
from tests.extract.llm.test_batches import right
from tests.extract.test_extract import write_split
from tests.helpers.model_server import honest, question

ray = pytest.importorskip("ray")
BATCH = Path(ray.__file__).parent / "llm" / "_internal" / "batch"
BROKEN = "http://127.0.0.1:9/v1"  # nobody answers there


def source(name: str) -> ast.Module:
    return ast.parse((BATCH / name).read_text(encoding="utf-8"))


def fields(name: str, *classes: str) -> set[str]:
    """The annotated names of pydantic classes of Ray's."""
    found = {node.name: node for node in ast.walk(source(name)) if isinstance(node, ast.ClassDef)}
    return {line.target.id for c in classes for line in found[c].body if isinstance(line, ast.AnnAssign)}


SETTINGS = fields("processor/vllm_engine_proc.py", "vLLMEngineProcessorConfig")
SETTINGS |= fields("processor/base.py", "ProcessorConfig", "OfflineProcessorConfig")
OUTPUT = fields("stages/vllm_engine_stage.py", "vLLMOutputData")


def wrapped(postprocess, with_errors):
    """Ray's own `wrap_postprocess`."""
    function = next(n for n in source("stages/base.py").body if getattr(n, "name", "") == "wrap_postprocess")
    for argument in [*function.args.args, function]:
        argument.annotation = None
    function.returns = None
    space: dict = {"Any": object}
    exec(compile(ast.Module([function], []), "stages/base.py", "exec"), space)
    return space["wrap_postprocess"](postprocess, "__data", with_errors)


class Engine:
    """`plan(body, n)`: what happens to the n-th row with these messages."""

    def __init__(self, plan=lambda data, n: "answer"):
        self.plan, self.seen, self.configs, self.rows = plan, {}, [], []

    def output(self, row):
        fields, data = question({"messages": row["messages"]})
        schema = json.loads(row["sampling_params"]["structured_outputs"]["json"])
        assert sorted(schema["properties"]) == sorted(fields) and row["sampling_params"]["max_tokens"] >= 16
        key = json.dumps(row["messages"][:2])
        self.seen[key] = number = self.seen.get(key, 0) + 1
        what = self.plan(data, number)
        made = dict.fromkeys(OUTPUT) | {"num_input_tokens": 100, "num_generated_tokens": 20, "prompt": "p"}
        made["generated_text"] = json.dumps(honest(fields, data))
        if what == "cut":
            made |= {"generated_text": '{"summary": "There', "num_generated_tokens": row["limit"]}
        return row | made | {"__inference_error__": "ValueError: too long" if what == "error" else ""}

    def modules(self, monkeypatch):
        def build_processor(config, preprocess=None, postprocess=None):
            assert preprocess is None
            after = wrapped(postprocess, config["should_continue_on_error"])

            def processor(rows):
                self.rows += rows
                return types.SimpleNamespace(
                    iter_rows=lambda: (after({"__data": self.output(row)}) for row in rows)
                )

            return processor

        def config(**settings):
            assert set(settings) <= SETTINGS
            self.configs.append(settings)
            return settings

        def from_items(rows):
            return pa.Table.from_pylist(rows).to_pylist()  # blocks are Arrow's: rows need one form

        data = types.ModuleType("ray.data")
        data.from_items, data.__path__ = from_items, []
        llm = types.ModuleType("ray.data.llm")
        llm.build_processor, llm.vLLMEngineProcessorConfig = build_processor, config
        data.llm = llm
        names = {"ray.data": data, "ray.data.llm": llm, "vllm": types.ModuleType("vllm")}
        for name, module in names.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(ray, "data", data, raising=False)
        monkeypatch.setattr(RayCluster, "connect", lambda self: None)
        nodes = [{"CPU": 9.0}, {"GPU": 8.0}, {"GPU": 3.0}]
        monkeypatch.setattr(RayCluster, "resources", lambda self: nodes)


@pytest.fixture
def folder(tmp_path):
    write_split(ROWS, tmp_path / "split")
    (tmp_path / "config.yaml").write_text(
        f"llm: {{base_url: '{BROKEN}', temperature: 0, model: folder/model}}\n"
        "extract: {folds: 2, provider: llm}\n"
    )
    return tmp_path


def answer(folder, *words):
    return cli.main(["extract", "answer-batch", "--run-dir", str(folder), *words])


def test_what_is_used_is_there_in_ray():
    (build,) = [
        n
        for n in ast.parse((BATCH.parents[2] / "data" / "llm.py").read_text()).body
        if getattr(n, "name", "") == "build_processor"
    ]
    assert [a.arg for a in build.args.args][:3] == ["config", "preprocess", "postprocess"]
    assert {"generated_text", "num_generated_tokens", "num_input_tokens"} <= OUTPUT
    text = (BATCH / "stages" / "vllm_engine_stage.py").read_text()
    assert 'sampling_params.pop("structured_outputs")' in text and '"__inference_error__": error_msg' in text
    assert '"messages": ' in (BATCH / "stages" / "chat_template_stage.py").read_text()


def test_every_call_is_answered_and_extract_makes_none(folder, monkeypatch, capsys):
    engine = Engine(lambda data, n: "cut" if n == 1 and len(data.get("reviews", ())) > 1 else "answer")
    engine.modules(monkeypatch)
    assert answer(folder, "--gpus-per-model", "2", "--model-tokens", "9000") == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) >= 2 and all(
        line.split()[0] == line.split()[2] for line in said
    )  # "4 of 4 calls answered"
    settings = engine.configs[0]
    assert settings["model_source"] == "folder/model" and settings["concurrency"] == (1, 5)
    assert settings["engine_kwargs"] == {"tensor_parallel_size": 2, "max_model_len": 9000}
    assert {row["sampling_params"]["temperature"] for row in engine.rows} == {0.0}
    limits = {row["sampling_params"]["max_tokens"] for row in engine.rows}
    assert len(limits) == 2 and max(limits) == 2 * min(limits)  # one that was cut has twice as many
    asked = {"temperature": 0.0, "model": "folder/model"}
    run(folder, BROKEN, asked)  # there is no server: all is known
    right(folder)
    assert answer(folder) == 0 and len(engine.configs) == len(said)  # nothing to ask


def test_rows_that_fail_are_asked_again_and_an_end_is_told(folder, monkeypatch, capsys):
    engine = Engine(lambda data, n: "error" if n == 1 and len(data["reviews"]) == 1 else "answer")
    engine.modules(monkeypatch)
    assert answer(folder) == 0
    first = capsys.readouterr().out.splitlines()[0].split()
    assert 0 < int(first[0]) < int(first[2])
    run(folder, BROKEN, {"temperature": 0.0, "model": "folder/model"})
    right(folder)
    shutil.rmtree(folder / "cache")
    Engine(lambda data, n: "error").modules(monkeypatch)
    assert answer(folder) == 3
    assert "vLLM answers none of" in (said := capsys.readouterr().err) and "ValueError: too long" in said


def test_a_killed_command_goes_on_with_what_is_missing(folder, monkeypatch):
    def plan(data, n):
        if len(engine.seen) == 3:
            raise KeyboardInterrupt
        return "answer"

    engine = Engine(plan)
    engine.modules(monkeypatch)
    assert answer(folder) == 130
    again = Engine()
    again.modules(monkeypatch)
    assert answer(folder) == 0
    assert len(set(again.seen) & set(list(engine.seen)[:2])) == 0 and again.seen


def test_what_cannot_be_is_refused(folder, monkeypatch, capsys):
    assert answer(folder) == 2
    assert "pip install 'ray[data,llm]==" in capsys.readouterr().err
    Engine().modules(monkeypatch)
    assert answer(folder, "--gpus-per-model", "9") == 2
    assert "--gpus-per-model 9: no node of the Ray cluster has so many GPUs" in capsys.readouterr().err
    assert answer(folder, "--set", "llm.reasoning_effort=high") == 2
    assert "no effort 'high'; set llm.reasoning_effort=unset" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        answer(folder, "--gpus-per-model", "0")
