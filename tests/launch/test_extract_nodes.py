"""The component `extract` on several nodes: Ray on each, the command on the first."""

from __future__ import annotations

import pytest

pytest.importorskip("torchx")
from launch import components, ray_cluster  # noqa: E402
from tests.launch.test_components import ODD, dlrrec_parser, placed, sample_flags, subparser  # noqa: E402


def cut_words(app):
    """(what launch.ray_cluster makes of its words, the options for `ray start`, the command)."""
    words = placed(app).args
    assert words[:2] == ["-m", "launch.ray_cluster"]
    cut = words.index("--")
    options, ray_options = ray_cluster.build_parser().parse_known_args(words[2:cut])
    return vars(options), ray_options, words[cut + 1 :]


def test_every_flag_reaches_the_command_through_ray():
    pytest.importorskip("ray")
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    flags = sample_flags(subparser(dlrrec_parser(), "extract"), leave_out=["--engine", "--address"])
    assert len(flags) > 20
    options, ray_options, command = cut_words(components.extract(*flags, j=3, h="h100x8", port=7000))
    assert options == {"nodes": 3, "rank": 1, "head_variable": "FIRST_NODE", "port": 7000}
    assert ray_options == ["--num-cpus=88", "--num-gpus=8"]
    handed = ["--address", "head:7000", "--min-nodes", "3", *ray_options]
    assert curate_and_validate_ray_start_args(handed) == ray_options
    assert command[:3] == ["python", "-m", "dlrrec_torchrec"]
    direct = ["extract", *flags, "--engine", "ray", "--address", "auto"]
    assert vars(dlrrec_parser().parse_args(command[3:])) == vars(dlrrec_parser().parse_args(direct))


def test_one_node_needs_no_ray():
    assert placed(components.extract("--provider", "llm")).args[2:] == ["extract", "--provider", "llm"]
    assert "RAY_USAGE_STATS_ENABLED" not in components.extract().roles[0].env
    with pytest.raises(ValueError, match="-j 0: at least one node"):
        components.extract(j=0)


def test_nodes_without_gpus_and_words_that_a_shell_would_change():
    app = components.extract(*ODD, j=2, cpu=4, env={"RAY_USAGE_STATS_ENABLED": "1", "OMP_NUM_THREADS": "3"})
    _, ray_options, command = cut_words(app)
    assert ray_options == ["--num-cpus=4"] and command[-len(ODD) :] == ODD
    role = app.roles[0]
    assert (role.num_replicas, role.port_map) == (2, {"ray": 6379})
    assert role.env["RAY_USAGE_STATS_ENABLED"] == "1" and role.env["OMP_NUM_THREADS"] == "3"
    assert role.env["CUDA_VISIBLE_DEVICES"] == ""  # GPUs that were not requested must not be used
