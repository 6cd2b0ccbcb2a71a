"""TorchX components: this project's commands on one machine, Slurm, Kubernetes or Docker.

    torchx run -s local_cwd launch/components.py:train -j 1x2 -- --run-dir runs/demo
    torchx run -s slurm launch/components.py:train -h h100x8 -j 2 -- --run-dir runs/mine
    torchx run -s local_cwd launch/components.py:bench -j 1x2 -- embeddings --sharding table_wise
    torchx run -s kubernetes launch/components.py:swing -j 4 items --input reviews --output neighbors
    torchx run launch/components.py:train --help

Each component is a pure function from its arguments to a `torchx.specs.AppDef`; what follows `--` goes to the
command unchanged. docs/launch.md says what has been run where.

TorchX executes this file alone, so it imports nothing of its own package, and the linter of components
knows only the annotations of `typing`. Numbers default to -1, as TorchX passes Optional[int] as text.
"""
# ruff: noqa: UP006, UP035, UP045

import shlex
from typing import Dict, List, NamedTuple, Optional

from torchx import specs
from torchx.specs import macros

IMAGE = "dlrrec-torchrec:latest"
BENCHMARKS = ("embeddings", "train", "loader", "features", "stages", "encode")

# Nodes with 8 GPUs as clouds and clusters have them. The requests fit the smallest of each kind, so one name
# finds a node anywhere: of H100, for instance, AWS p5, Azure ND H100 v5 or Google a3-highgpu-8g. TorchX
# itself knows AWS's machine types (aws_p4d.24xlarge, aws_p5.48xlarge), by which Kubernetes then selects.
NODES = {
    "a100x8": specs.Resource(cpu=88, gpu=8, memMB=600 * 1024),
    "h100x8": specs.Resource(cpu=88, gpu=8, memMB=1600 * 1024),
    "h200x8": specs.Resource(cpu=88, gpu=8, memMB=1600 * 1024),
    "b200x8": specs.Resource(cpu=176, gpu=8, memMB=1600 * 1024),
}
EFA = "vpc.amazonaws.com/efa"


class _Job(NamedTuple):
    """What every job has besides its command, as the components explain it."""

    image: str
    name: str
    env: Optional[Dict[str, str]]
    max_retries: int
    mounts: Optional[List[str]]


def train(
    *args: str,
    j: str = "1",
    h: str = "cpu.large",
    cpu: int = -1,
    gpu: int = -1,
    memMB: int = -1,
    image: str = IMAGE,
    name: str = "train",
    env: Optional[Dict[str, str]] = None,
    max_restarts: int = 0,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    debug: bool = False,
) -> specs.AppDef:
    """Trains on NODES x RANKS processes: `dlrrec train` under torch elastic (torchrun).

    A stopped training continues from its last checkpoint when it is started again with the same arguments,
    so both kinds of retries continue it. All nodes must see the folder of the run under the same path.

    Args:
        args: flags of `dlrrec train`, after a `--`
        j: NODES or NODESxRANKS; ranks on each node: by default one for each of its GPUs, or 1 without GPUs
        h: kind of node: a100x8, h100x8, h200x8, b200x8 (8 GPUs each) or a named resource of TorchX, such as
            aws_p5.48xlarge, aws_g5.12xlarge, gpu.small, cpu.xlarge
        cpu: CPUs of a node, instead of the named number
        gpu: GPUs of a node, instead of the named number; with 0 the ranks use CPUs only
        memMB: memory of a node in MiB, instead of the named amount
        image: container image; local_cwd and slurm run in the current folder instead
        name: name of the job
        env: environment variables, A=1,B=2, also instead of those set here
        max_restarts: how often torch elastic restarts all ranks after one of them died
        max_retries: how often the scheduler starts a failed job again
        mounts: type=bind,src=HOST_PATH,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH; one or more
        rdzv_port: port of the rendezvous on the first node, where there are several nodes
        debug: checks and logs of torch.distributed and NCCL, slow
    """
    resource = _resource(h, cpu, gpu, memMB)
    job = _Job(image, name, env, max_retries, mounts)
    return _elastic("train", args, j, resource, job, max_restarts, rdzv_port, debug)


def evaluate(
    *args: str,
    h: str = "cpu.large",
    cpu: int = -1,
    gpu: int = -1,
    memMB: int = -1,
    image: str = IMAGE,
    name: str = "evaluate",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Scores the test rows and the baselines: `dlrrec evaluate`, one process on one node.

    Args:
        args: flags of `dlrrec evaluate`, after a `--`
        h: kind of node: a100x8, h100x8, h200x8, b200x8 or a named resource of TorchX, as gpu.small
        cpu: CPUs of the node, instead of the named number
        gpu: GPUs of the node, instead of the named number
        memMB: memory of the node in MiB, instead of the named amount
        image: container image; local_cwd and slurm run in the current folder instead
        name: name of the job
        env: environment variables, A=1,B=2, also instead of those set here
        max_retries: how often the scheduler starts a failed job again
        mounts: type=bind,src=HOST_PATH,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH; one or more
    """
    resource = _resource(h, cpu, gpu, memMB)
    return _single("evaluate", args, resource, _Job(image, name, env, max_retries, mounts))


def extract(
    *args: str,
    j: int = 1,
    h: str = "cpu.large",
    cpu: int = -1,
    gpu: int = -1,
    memMB: int = -1,
    image: str = IMAGE,
    name: str = "extract",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    port: int = 6379,
) -> specs.AppDef:
    """Writes summaries, vectors, price tags and categories: `dlrrec extract`, on several nodes over Ray.

    With -j 2 and more, Ray starts on every node, the command runs on the first one with --engine ray, and
    texts are embedded and pictures described on all of them; then Ray is stopped on every node: take whole
    nodes, as `ray stop` also ends other Ray clusters of the same user there. A model in a folder must be on
    all nodes under the same path. Finished vectors are in the run's cache, so a retry continues where the job
    stopped.

    Args:
        args: flags of `dlrrec extract`, after a `--`
        j: number of nodes
        h: kind of node: a100x8, h100x8, h200x8, b200x8 or a named resource of TorchX, as cpu.xlarge
        cpu: CPUs of a node, instead of the named number
        gpu: GPUs of a node, instead of the named number
        memMB: memory of a node in MiB, instead of the named amount
        image: container image; local_cwd and slurm run in the current folder instead
        name: name of the job
        env: environment variables, A=1,B=2, also instead of those set here
        max_retries: how often the scheduler starts a failed job again
        mounts: type=bind,src=HOST_PATH,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH; one or more
        port: port of Ray on the first node, where there are several nodes
    """
    if j < 1:
        raise ValueError(f"-j {j}: at least one node")
    resource = _resource(h, cpu, gpu, memMB)
    if j == 1:
        return _single("extract", args, resource, _Job(image, name, env, max_retries, mounts))
    command, variables = ["-m", "dlrrec_torchrec", "extract"], _torch_environment(resource, 1) | (env or {})
    job = _Job(image, name, variables, max_retries, mounts)
    return _on_ray("extract", command, args, j, resource, job, port)


def experiment(
    *args: str,
    j: int = 1,
    h: str = "cpu.large",
    image: str = IMAGE,
    name: str = "experiment",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Trains the cells of a table: `dlrrec experiment`, with a share of them on each node.

    The first node makes the shards, for which the others wait; the last to end writes the tables. All nodes
    must see the folder of --out under the same path. Started again, a stopped job continues where it was.

    Args:
        args: the experiment and its flags, such as table1 --seeds 5 --out FOLDER
        j: number of nodes
        h: kind of node: a100x8, h100x8, h200x8, b200x8 or a named resource of TorchX, as cpu.xlarge
        image: container image; local_cwd and slurm run in the current folder instead
        name: name of the job
        env: environment variables, A=1,B=2, also instead of those set here
        max_retries: how often the scheduler starts a failed job again
        mounts: type=bind,src=HOST_PATH,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH; one or more
    """
    if not args or args[0].startswith("-"):
        raise ValueError("name the experiment: experiment table1 ...")
    if j < 1:
        raise ValueError(f"-j {j}: at least one node")
    job = _Job(image, name, env, max_retries, mounts)
    return _single("experiment", args, _resource(h, -1, -1, -1), job, j)


def swing(
    *args: str,
    j: int = 1,
    h: str = "cpu.large",
    cpu: int = -1,
    memMB: int = -1,
    image: str = IMAGE,
    name: str = "swing",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    port: int = 6379,
) -> specs.AppDef:
    """Finds SWING neighbours on a Ray cluster of the job's nodes: `python -m swing` by `ray symmetric-run`.

    Ray starts on every node, the command runs on the first one, then Ray is stopped on every node: take whole
    nodes, as `ray stop` also ends other Ray clusters of the same user there. All nodes must see input and
    output under the same paths. A stopped job continues where it was when it is started again.

    Args:
        args: `items` or `users` and the flags of `python -m swing`, such as items --input IN --output OUT
        j: number of nodes
        h: kind of node, a named resource of TorchX such as cpu.xlarge
        cpu: CPUs of a node, instead of the named number; Ray schedules as many
        memMB: memory of a node in MiB, instead of the named amount
        image: container image; local_cwd and slurm run in the current folder instead
        name: name of the job
        env: environment variables, A=1,B=2, also instead of those set here
        max_retries: how often the scheduler starts a failed job again
        mounts: type=bind,src=HOST_PATH,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH; one or more
        port: port of Ray on the first node
    """
    if not args or args[0] not in ("items", "users"):
        raise ValueError("name the side: swing items ... or swing users ...")
    if j < 1:
        raise ValueError(f"-j {j}: at least one node")
    resource = _resource(h, cpu, 0, memMB)
    command, variables = ["-m", "swing", args[0]], {"PYTHONUNBUFFERED": "1"} | (env or {})
    job = _Job(image, name, variables, max_retries, mounts)
    return _on_ray("swing", command, args[1:], j, resource, job, port)


def bench(
    *args: str,
    j: str = "1",
    h: str = "cpu.large",
    cpu: int = -1,
    gpu: int = -1,
    memMB: int = -1,
    image: str = IMAGE,
    name: str = "bench",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    debug: bool = False,
) -> specs.AppDef:
    """Measures a part of the system on NODES x RANKS processes: `dlrrec bench` under torch elastic.

    Rank 0 prints the table and writes the JSON into the folder of `--out`.

    Args:
        args: what to measure and its flags, such as embeddings --sharding table_wise
        j: NODES or NODESxRANKS; ranks on each node: by default one for each of its GPUs, or 1 without GPUs
        h: kind of node: a100x8, h100x8, h200x8, b200x8 or a named resource of TorchX, as gpu.small
        cpu: CPUs of a node, instead of the named number
        gpu: GPUs of a node, instead of the named number; with 0 the ranks use CPUs only
        memMB: memory of a node in MiB, instead of the named amount
        image: container image; local_cwd and slurm run in the current folder instead
        name: name of the job
        env: environment variables, A=1,B=2, also instead of those set here
        max_retries: how often the scheduler starts a failed job again
        mounts: type=bind,src=HOST_PATH,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH; one or more
        rdzv_port: port of the rendezvous on the first node, where there are several nodes
        debug: checks and logs of torch.distributed and NCCL, slow
    """
    if not args or args[0] not in BENCHMARKS:
        raise ValueError(f"name what to measure: bench {' or bench '.join(BENCHMARKS)}")
    resource = _resource(h, cpu, gpu, memMB)
    job = _Job(image, name, env, max_retries, mounts)
    return _elastic("bench", args, j, resource, job, 0, rdzv_port, debug)


def _elastic(
    stage: str,
    args: tuple,
    j: str,
    resource: specs.Resource,
    job: _Job,
    restarts: int,
    port: int,
    debug: bool,
) -> specs.AppDef:
    """`dlrrec STAGE` on ranks that torch elastic starts."""
    nodes, ranks = _nodes_and_ranks(j, resource.gpu)
    # With several nodes the scheduler's variable names the first one. Schedulers that do not set it there set
    # it on the others.
    endpoint = f"$${{{macros.rank0_env}:=localhost}}:{port}" if nodes > 1 else "localhost:0"
    elastic = {"nnodes": nodes, "nproc_per_node": ranks, "max_restarts": restarts}
    elastic |= {"rdzv_backend": "c10d", "rdzv_id": macros.app_id, "tee": 3, "role": ""}
    command = ["exec", "python", "-m", "torch.distributed.run"]
    command += [word for flag, value in elastic.items() for word in (f"--{flag}", shlex.quote(str(value)))]
    command += ["--rdzv_endpoint", endpoint, "-m", "dlrrec_torchrec", stage]
    command += map(shlex.quote, _literal(args))
    # In a store shared with torchrun, restarted ranks find the keys of the previous ones, and hang.
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | _torch_environment(resource, ranks, debug)
    return _app(stage, job, resource, ["bash", "-c", " ".join(command)], env, nodes, c10d=port)


def _single(stage: str, args: tuple, resource: specs.Resource, job: _Job, nodes: int = 1) -> specs.AppDef:
    """One process of a stage, on each node."""
    command = ["python", "-m", "dlrrec_torchrec", stage, *_literal(args)]
    command += ["--share", f"{macros.replica_id}/{nodes}"] if nodes > 1 else []
    return _app(stage, job, resource, command, _torch_environment(resource, 1), nodes)


def _on_ray(
    stage: str, words: List[str], args: tuple, nodes: int, resource: specs.Resource, job: _Job, port: int
) -> specs.AppDef:
    """`python WORDS --engine ray --address auto ARGS` on the first node of a Ray cluster of all."""
    cluster = {"nodes": nodes, "rank": macros.replica_id, "head-variable": macros.rank0_env, "port": port}
    command = ["python", "-m", "launch.ray_cluster"]
    command += [word for flag, value in cluster.items() for word in (f"--{flag}", str(value))]
    command += [f"--num-cpus={resource.cpu}", *([f"--num-gpus={resource.gpu}"] if resource.gpu else []), "--"]
    command += ["python", *words, "--engine", "ray", "--address", "auto", *_literal(args)]
    # Nodes can start minutes apart, as each fetches its image; Ray's default is 30 seconds.
    ray = {"RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "600", "RAY_USAGE_STATS_ENABLED": "0"}
    return _app(stage, job, resource, command, ray, nodes, ray=port)


def _app(
    stage: str, job: _Job, resource: specs.Resource, command: List[str], env: dict, nodes: int, **ports: int
) -> specs.AppDef:
    """The command on each node, with these variables where the user gives no others."""
    role = specs.Role(
        name=stage,
        image=job.image,
        entrypoint=command[0],
        args=command[1:],
        env=env | (job.env or {}),
        num_replicas=nodes,
        max_retries=job.max_retries,
        resource=resource,
        port_map=ports,
        mounts=specs.parse_mounts(job.mounts or []),
    )
    return specs.AppDef(name=job.name, roles=[role])


def _literal(words: tuple) -> List[str]:
    """Words of the user as TorchX needs them: an unescaped `$` begins a macro."""
    return [word.replace("$", "$$") for word in words]


def _resource(h: str, cpu: int, gpu: int, memMB: int) -> specs.Resource:
    """The named node, changed where a value is not -1. Raises KeyError for an unknown name."""
    node = NODES[h] if h in NODES else specs.named_resources[h]
    return specs.Resource(
        cpu=node.cpu if cpu < 0 else cpu,
        gpu=node.gpu if gpu < 0 else gpu,
        memMB=node.memMB if memMB < 0 else memMB,
        capabilities=dict(node.capabilities),
        devices=dict(node.devices),
    )


def _nodes_and_ranks(j: str, gpus: int) -> tuple:
    """`2x8` -> (2, 8); `2` -> two nodes with a rank for each of their GPUs. Raises ValueError."""
    nodes, x, ranks = j.partition("x")
    if not nodes.isdigit() or (x and not ranks.isdigit()):
        raise ValueError(f"-j {j}: must be NODES or NODESxRANKS, such as 2x8")
    node_count, rank_count = int(nodes), int(ranks) if x else max(gpus, 1)
    if min(node_count, rank_count) < 1:
        raise ValueError(f"-j {j}: at least one node and one rank")
    if 0 < gpus < rank_count:
        raise ValueError(f"-j {j}: {rank_count} ranks on nodes of {gpus} GPUs; take -j {nodes} or another -h")
    return node_count, rank_count


def _torch_environment(resource: specs.Resource, ranks: int, debug: bool = False) -> Dict[str, str]:
    """Variables for the ranks of one node. No value has a comma: Slurm would cut it there."""
    variables = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(max(1, resource.cpu // ranks))}
    if not resource.gpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # GPUs that were not requested must not be used
    else:
        variables["NCCL_DEBUG"] = "INFO" if debug else "WARN"
        # Where a collective hangs, each rank writes its last ones to a file.
        variables |= {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
        if debug:
            variables["CUDA_LAUNCH_BLOCKING"] = "1"
    if EFA in resource.devices:
        variables |= {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}
    if debug:
        variables |= {
            "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
            "TORCH_SHOW_CPP_STACKTRACES": "1",
            "LOGLEVEL": "INFO",
        }
    return variables
