"""TorchX components: what each scheduler would be asked to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torchx")

from torch.distributed.run import get_args_parser as torchrun_parser  # noqa: E402
from torchx.runner import get_runner  # noqa: E402

from launch import components  # noqa: E402
from tests.launch.test_components import SWING, bash_words, role  # noqa: E402


def request(app, scheduler, **cfg):
    with get_runner() as runner:
        return runner.dryrun(app, scheduler, cfg).request


def test_local_request():
    local_request = request(components.train("--run-dir", "runs/x", j="1x2"), "local_cwd")
    (replica,) = local_request.role_params["train"]
    assert replica.args[:2] == ["bash", "-c"] and "--nproc_per_node 2" in replica.args[2]
    assert replica.env["OMP_NUM_THREADS"] == "1"


def test_slurm_script(tmp_path):
    """The script that sbatch would get is run by bash, with an srun that notes what it was told."""
    app = components.train("--run-dir", "it's", "--set", "x=a b", j="2", h="h100x8", max_retries=1)
    slurm_request = request(app, "slurm", partition="gpu", time="1:00:00")
    script = slurm_request.materialize()
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert len(directives) == 3 and directives[1] == "#SBATCH hetjob"
    for line in (directives[0], directives[2]):
        for option in ("--partition=gpu", "--gpus-per-task=8", "--cpus-per-task=88", "--ntasks-per-node=1"):
            assert option in line.split()
    assert "TORCHX_MAX_RETRIES=1" in script
    log = tmp_path / "told"
    log.mkdir()
    srun = (
        f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open({str(log / 'words')!r}, 'w'))\n"
    )
    (tmp_path / "srun").write_text(srun)
    (tmp_path / "srun").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True)
    words = json.loads((log / "words").read_text())
    middle = words.index(":")
    for number, part in enumerate((words[:middle], words[middle + 1 :])):
        assert f"--output=slurm-42-train-{number}.out" in part
        export = next(w for w in part if w.startswith("--export=")).removeprefix("--export=").split(",")
        assert export[0] == "ALL" and "OMP_NUM_THREADS=11" in export and "NCCL_DEBUG=WARN" in export
        assert part[-3:-1] == ["bash", "-c"]
        first = {"SLURM_JOB_NODELIST_HET_GROUP_0": "node7"}
        options = torchrun_parser().parse_args(bash_words(part[-1], first)[2:])
        assert options.rdzv_endpoint == "node7:29500" and options.rdzv_id == "42"
        assert options.training_script_args == ["train", "--run-dir", "it's", "--set", "x=a b"]


def test_slurm_would_cut_no_variable():
    for app in (components.train(h=h, debug=d) for h in ("cpu.large", "aws_p5.48xlarge") for d in (0, 1)):
        assert not any("," in value for value in role(app).env.values())
    assert not any("," in value for value in role(components.swing(*SWING)).env.values())


def test_docker_request():
    app = components.swing(*SWING, j=2, h="cpu.xlarge", mounts=["type=bind", "src=/shared", "dst=/data"])
    first, second = request(app, "local_docker").containers
    assert first.image == components.IMAGE
    for rank, container in enumerate((first, second)):
        assert container.command[container.command.index("--rank") + 1] == str(rank)
        variable = container.command[container.command.index("--head-variable") + 1]
        assert container.kwargs["environment"][variable] == first.kwargs["hostname"]
        assert container.kwargs["nano_cpus"] == 8e9 and "--num-cpus=8" in container.command
        assert container.kwargs["mounts"][0]["Target"] == "/data"


def test_kubernetes_request():
    app = components.train("--run-dir", "/data/x", j="2", h="aws_p5.48xlarge", max_retries=2)
    with pytest.warns(UserWarning, match="Volcano"):
        job_request = request(app, "kubernetes", queue="default")
    tasks = job_request.resource["spec"]["tasks"]
    assert len(tasks) == 2 and job_request.resource["spec"]["maxRetry"] == 2
    for task, variable in zip(tasks, ("TORCHX_RANK0_HOST", "VC_TRAIN_0_HOSTS"), strict=True):
        (container,) = task["template"].spec.containers
        assert container.image == components.IMAGE
        variables = {variable.name: variable.value for variable in container.env}
        assert variables["NCCL_DEBUG"] == "WARN" and variables["FI_PROVIDER"] == "efa"
        options = torchrun_parser().parse_args(bash_words(container.command[2], {variable: "first"})[2:])
        assert options.rdzv_endpoint == "first:29500"
        assert container.resources.limits["nvidia.com/gpu"] == "8"
        assert container.resources.limits[components.EFA] == "32"
        selected = task["template"].spec.node_selector
        assert selected == {"node.kubernetes.io/instance-type": "p5.48xlarge"}


def test_kubernetes_gives_shared_memory_and_folders():
    """Ranks pass tensors through /dev/shm, which is tiny in a pod unless it is asked for."""
    app = components.swing(*SWING, j=2, mounts=["type=volume", "src=claim", "dst=/data"])
    job_request = request(app, "kubernetes", queue="default")
    for rank, task in enumerate(job_request.resource["spec"]["tasks"]):
        pod = task["template"].spec
        places = {mount.name: mount.mount_path for mount in pod.containers[0].volume_mounts}
        volumes = {volume.name: volume for volume in pod.volumes}
        (shared,) = [n for n, p in places.items() if p == "/dev/shm"]
        assert volumes[shared].empty_dir.medium == "Memory"
        (data,) = [n for n, p in places.items() if p == "/data"]
        assert volumes[data].persistent_volume_claim.claim_name == "claim"
        words = pod.containers[0].command
        assert words[words.index("--rank") + 1] == str(rank)
