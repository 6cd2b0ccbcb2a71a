"""TorchX components: their arguments read by the programs they start."""

from __future__ import annotations

import inspect
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torchx")

from torch.distributed.run import get_args_parser as torchrun_parser  # noqa: E402
from torchx.specs import macros, named_resources  # noqa: E402
from torchx.specs.builders import _create_args_parser, materialize_appdef  # noqa: E402
from torchx.specs.file_linter import get_fn_docstring, validate  # noqa: E402

from dlrrec_torchrec.cli import build_parser as dlrrec_parser
from launch import components, ray_cluster  # noqa: E402
from swing.__main__ import build_parser as swing_parser  # noqa: E402

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch" / "components.py"
NAMES = ["train", "evaluate", "extract", "experiment", "swing", "bench"]
ODD = [
    "a b",
    "it's",
    'say "x"',
    "$HOME",
    "$$",
    "`id`",
    "a;b",
    "*",
    "\\",
    "ü",
    "--set",
    "x=[1, 2]",
    "${app_id}",
]
SWING = ["items", "--input", "in", "--output", "out"]


def component(name):
    return getattr(components, name)


def role(app):
    (only,) = app.roles
    return only


def placed(app, **values):
    """The one role of `app`, its macros replaced as a scheduler does it."""
    macro_values = {"img_root": "", "app_id": "job", "replica_id": "1", "rank0_env": "FIRST_NODE"}
    return macros.Values(**macro_values | values).apply(role(app))


def bash_words(script, environment=None):
    """The words that bash makes of a script of one command, which it prints instead of running it."""
    assert script.startswith("exec python ")
    printing = "printf '%s\\0' " + script.removeprefix("exec python ")
    result = subprocess.run(["bash", "-c", printing], capture_output=True, env=environment or {}, check=True)
    return result.stdout.decode().split("\0")[:-1]


def torchrun_words(app, environment=None):
    """(what torch.distributed.run makes of a training's command, the program's own words)."""
    words = bash_words(placed(app).args[1], environment)
    assert words[:2] == ["-m", "torch.distributed.run"]
    options = torchrun_parser().parse_args(words[2:])
    return options, options.training_script_args


def sample_flags(parser, leave_out=()):
    """Every optional flag of an argparse parser once, with a value that it takes."""
    words = []
    for action in parser._actions:
        flag = action.option_strings[-1] if action.option_strings else None
        if not flag or {"-h", *leave_out} & set(action.option_strings):
            continue
        words.append(flag)
        if action.nargs != 0:
            pair = getattr(action.type, "__name__", "") == "pair"
            value = action.choices[0] if action.choices else "k=v" if pair else "3"
            words.append(str(value))
    return words


def subparser(parser, name):
    return next(a for a in parser._actions if a.choices and name in a.choices).choices[name]


# ---- what `torchx run launch/components.py:NAME` needs


@pytest.mark.parametrize("name", NAMES)
def test_torchx_accepts_and_explains_every_argument(name, capsys):
    assert validate(str(FILE), name) == []
    _, described = get_fn_docstring(component(name))
    parameters = inspect.signature(component(name)).parameters
    assert list(described) == list(parameters)
    assert all(len(text.split()) >= 3 for text in described.values()), described
    with pytest.raises(SystemExit) as stopped:
        _create_args_parser(component(name)).parse_args(["--help"])
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    assert all(f"--{p}" in help_text for p in parameters if p != "args")


@pytest.mark.parametrize("name", NAMES)
def test_components_are_pure(name):
    first = {"swing": SWING, "bench": ["embeddings"], "experiment": ["table1"]}
    words = first.get(name, ["--run-dir", "runs/x"])
    env = {"A": "1"}
    first = component(name)(*words, env=env)
    role(first).env["B"] = "2"
    role(first).resource.capabilities["changed"] = True
    second = component(name)(*words, env=env)
    assert env == {"A": "1"} and "B" not in role(second).env
    assert role(second).resource.capabilities == {}
    assert second == component(name)(*words, env=env)


def test_the_command_line_gives_every_argument_its_type():
    flags = (
        "-j 2x4 -h gpu.large --cpu 8 --gpu 4 --memMB 4096 --image i:1 --name n --env A=1,B=2 --max_restarts 3"
    )
    flags += " --max_retries 2 --mounts type=volume,src=v,dst=/data,readonly --rdzv_port 1234 --debug true"
    app = materialize_appdef(components.train, [*flags.split(), "--", "--epochs", "3"])
    job_role = role(app)
    assert (
        app.name == "n"
        and job_role.image == "i:1"
        and job_role.num_replicas == 2
        and job_role.max_retries == 2
    )
    assert (job_role.resource.cpu, job_role.resource.gpu, job_role.resource.memMB) == (8, 4, 4096)
    assert job_role.env["A"] == "1" and job_role.env["B"] == "2" and job_role.env["NCCL_DEBUG"] == "INFO"
    assert job_role.mounts[0].src == "v" and job_role.mounts[0].read_only
    assert job_role.port_map == {"c10d": 1234}
    options, words = torchrun_words(app)
    assert options.max_restarts == 3 and words == ["train", "--epochs", "3"]


# ---- the programs behind the components read what they are given


@pytest.mark.parametrize("environment, endpoint", [({}, "localhost"), ({"FIRST_NODE": "node7"}, "node7")])
def test_torchrun_reads_a_job_of_two_nodes(environment, endpoint):
    app = components.train("--run-dir", "runs/x", j="2x8", h="h100x8", rdzv_port=29501, max_restarts=2)
    options, words = torchrun_words(app, environment)
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "8", 2)
    assert options.rdzv_endpoint == f"{endpoint}:29501" and options.rdzv_backend == "c10d"
    assert (options.rdzv_id, options.tee, options.role) == ("job", "3", "")
    assert options.module and options.training_script == "dlrrec_torchrec"
    assert vars(dlrrec_parser().parse_args(words))["run_dir"] == "runs/x"


def test_one_node_takes_any_free_port():
    options, _ = torchrun_words(components.train(j="1x2"), {"FIRST_NODE": "node7"})
    assert options.rdzv_endpoint == "localhost:0" and options.nproc_per_node == "2"


@pytest.mark.parametrize("name", ["train", "evaluate", "extract"])
def test_every_flag_of_a_stage_reaches_it(name):
    flags = sample_flags(subparser(dlrrec_parser(), name))
    assert len(flags) > 4
    app = component(name)(*flags)
    if name == "train":
        _, words = torchrun_words(app)
    else:
        program, words = placed(app).args[:2], placed(app).args[2:]
        assert role(app).entrypoint == "python" and program == ["-m", "dlrrec_torchrec"]
    assert vars(dlrrec_parser().parse_args(words)) == vars(dlrrec_parser().parse_args([name, *flags]))


def test_an_experiment_is_dealt_over_the_nodes():
    flags = sample_flags(subparser(dlrrec_parser(), "experiment"), leave_out=["--share"])
    direct = vars(dlrrec_parser().parse_args(["experiment", "mmrec", *flags]))
    alone = placed(components.experiment("mmrec", *flags, h="cpu.xlarge"))
    assert alone.num_replicas == 1 and vars(dlrrec_parser().parse_args(alone.args[2:])) == direct
    on_three = placed(components.experiment("mmrec", *flags, j=3), replica_id="2")
    assert on_three.num_replicas == 3 and on_three.entrypoint == "python"
    assert vars(dlrrec_parser().parse_args(on_three.args[2:])) == direct | {"share": (2, 3)}
    for words in ((), ("--quick",)):
        with pytest.raises(ValueError, match="experiment table1"):
            components.experiment(*words)
    with pytest.raises(ValueError, match="one node"):
        components.experiment("table1", j=0)


def benchmarks():
    return next(a for a in subparser(dlrrec_parser(), "bench")._actions if a.choices).choices


@pytest.mark.parametrize("part", components.BENCHMARKS)
def test_every_flag_of_a_benchmark_reaches_it(part):
    flags = sample_flags(benchmarks()[part])
    assert len(flags) > 4
    app = components.bench(part, *flags, j="2x4", h="h100x8", rdzv_port=29501)
    options, words = torchrun_words(app, {"FIRST_NODE": "node7"})
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "4", 0)
    assert options.rdzv_endpoint == "node7:29501" and options.training_script == "dlrrec_torchrec"
    assert (app.name, role(app).name, role(app).port_map) == ("bench", "bench", {"c10d": 29501})
    direct = dlrrec_parser().parse_args(["bench", part, *flags])
    assert vars(dlrrec_parser().parse_args(words)) == vars(direct)


def test_what_there_is_to_measure():
    assert sorted(components.BENCHMARKS) == sorted(benchmarks())
    for words in ((), ("--out", "x"), ("embedding",)):
        with pytest.raises(ValueError, match="bench embeddings or"):
            components.bench(*words)


@pytest.mark.parametrize("side", ["items", "users"])
def test_every_flag_of_swing_reaches_it_through_ray(side):
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    flags = sample_flags(subparser(swing_parser(), side), leave_out=["--engine", "--address"])
    job_role = placed(components.swing(side, *flags, j=3, cpu=5, port=7000))
    assert job_role.entrypoint == "python" and job_role.args[:2] == ["-m", "launch.ray_cluster"]
    cut = job_role.args.index("--")
    own_words, command = job_role.args[2:cut], job_role.args[cut + 1 :]
    options, ray_options = ray_cluster.build_parser().parse_known_args(own_words)
    assert vars(options) == {"nodes": 3, "rank": 1, "head_variable": "FIRST_NODE", "port": 7000}
    assert ray_options == ["--num-cpus=5"]
    handed = ["--address", "head:7000", "--min-nodes", "3", *ray_options]
    assert symmetric_run.make_context("_", [*handed], resilient_parsing=True).params["min_nodes"] == 3
    assert curate_and_validate_ray_start_args(handed) == ray_options
    assert command[:3] == ["python", "-m", "swing"]
    read = vars(swing_parser().parse_args(command[3:]))
    direct = vars(swing_parser().parse_args([side, *flags, "--engine", "ray", "--address", "auto"]))
    assert read == direct


def test_an_engine_that_is_given_wins():
    words = placed(components.swing(*SWING, "--engine", "local")).args
    assert swing_parser().parse_args(words[words.index("swing") + 1 :]).engine == "local"


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)))
def test_words_reach_the_program_unchanged(words):
    words = [*ODD, *words]
    assert torchrun_words(components.train(*words))[1] == ["train", *words]
    assert placed(components.extract(*words)).args[3:] == words
    arguments = placed(components.swing("items", *words)).args
    assert arguments[-len(words) :] == words


# ---- nodes, ranks, environment


@pytest.mark.parametrize(
    "j, h, expected",
    [
        ("1", "cpu.large", (1, 1)),
        ("1x2", "cpu.large", (1, 2)),
        ("2", "h100x8", (2, 8)),
        ("3x4", "a100x8", (3, 4)),
        ("2", "aws_g5.12xlarge", (2, 4)),
    ],
)
def test_nodes_and_ranks(j, h, expected):
    app = components.train(j=j, h=h)
    options, _ = torchrun_words(app)
    assert (role(app).num_replicas, int(options.nproc_per_node)) == expected
    assert options.nnodes == str(expected[0])


@pytest.mark.parametrize("j", ["", "x", "2x", "x2", "0", "1x0", "-1", "two", "1x2x3", "1:2x4", "1x9"])
def test_nodes_that_cannot_be(j):
    with pytest.raises(ValueError, match="-j"):
        components.train(j=j, h="h200x8")


def test_swing_says_what_is_missing():
    for words in ((), ("audit", "out"), ("--input", "in")):
        with pytest.raises(ValueError, match="swing items"):
            components.swing(*words)
    with pytest.raises(ValueError, match="one node"):
        components.swing(*SWING, j=0)
    with pytest.raises(KeyError, match="cpu.large"):
        components.swing(*SWING, h="cpu.larg")


def test_resources_are_the_named_ones_with_what_is_given_in_their_place():
    assert role(components.train(h="aws_p5.48xlarge")).resource == named_resources["aws_p5.48xlarge"]
    changed = role(components.train(h="aws_p5.48xlarge", gpu=4, memMB=1000)).resource
    node = named_resources["aws_p5.48xlarge"]
    assert (changed.cpu, changed.gpu, changed.memMB) == (node.cpu, 4, 1000)
    assert changed.capabilities == node.capabilities and changed.devices == node.devices
    assert role(components.train(h="h100x8", gpu=0)).resource.gpu == 0


def test_environment_of_ranks():
    on_cpus = role(components.train(j="1x2", cpu=8)).env
    assert on_cpus["CUDA_VISIBLE_DEVICES"] == "" and on_cpus["OMP_NUM_THREADS"] == "4"
    assert "NCCL_DEBUG" not in on_cpus
    assert on_cpus["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"  # or a restart hangs
    on_gpus = role(components.train(j="2", h="aws_p5.48xlarge")).env
    assert "CUDA_VISIBLE_DEVICES" not in on_gpus and on_gpus["NCCL_DEBUG"] == "WARN"
    assert on_gpus["FI_PROVIDER"] == "efa" and on_gpus["OMP_NUM_THREADS"] == "24"
    assert "FI_PROVIDER" not in role(components.train(h="h100x8")).env
    assert role(components.train(j="1x4")).env["OMP_NUM_THREADS"] == "1"  # more ranks than CPUs
    environment = role(components.train(h="h100x8", env={"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "3"})).env
    assert (environment["NCCL_DEBUG"], environment["OMP_NUM_THREADS"]) == ("INFO", "3")
