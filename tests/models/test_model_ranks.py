"""Two gloo processes against one on the joined batch, and TorchRec's pipelined trainer on the CPU."""

import logging

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.model_parallel import DistributedModelParallel, get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrrec_torchrec.distributed.collectives import gather_rows
from tests.helpers.launcher import Launch
from tests.models.test_wrapper import NEGATIVES, ROWS, random_batch, small_wrapper

STEPS = 2
TABLE = "model.sparse_arch.embedding_bag_collection.embedding_bags.t_category.weight"
CASES = {  # name -> (rows of rank 0, the rest is rank 1's; settings of the wrapper)
    "even": (ROWS // 2, {"negatives": "corpus"}),
    "uneven": (
        5,
        {"negatives": "corpus", "positive": "sample", "class_weights": (2.0, 0.5), "learnable": True},
    ),
    "batch": (7, {"negatives": "batch", "normalize": False, "temperature": 1.0}),
    "popularity": (7, {"negatives": "popularity"}),
    "semi_hard": (9, {"negatives": "semi_hard"}),
    "swing_hard": (9, {"negatives": "swing_hard"}),
}


def outcome(wrapper, run, parts_of_batches):
    """Losses, gradients and statistics after `STEPS` forward and backward passes."""
    losses = []
    for part in parts_of_batches:
        wrapper.zero_grad()
        loss, parts = run(part)
        loss.backward()
        losses.append([float(loss), *(float(parts[f"loss_{n}"]) for n in ("rec", "ii", "uu"))])
    gradients = {n: p.grad.clone() for n, p in wrapper.named_parameters() if p.grad is not None}
    return {
        "losses": losses,
        "gradients": gradients,
        "buffers": dict(wrapper.model.dense_arch.named_buffers()),
    }


def one_rank(settings, steps=STEPS):
    wrapper = small_wrapper(**settings)
    return outcome(wrapper, wrapper, [random_batch(s) for s in range(steps)])


def rank_slice(rank, first):
    return slice(0, first) if rank == 0 else slice(first, ROWS)


def work(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    outcomes = {}
    for name, (first, settings) in CASES.items():
        wrapper = small_wrapper(**settings)
        mine = [random_batch(s, part=rank_slice(rank, first)) for s in range(STEPS)]
        outcomes[name] = outcome(wrapper, DistributedDataParallel(wrapper), mine)
    outcomes["sharded"] = sharded(rank)
    outcomes["pipelined"] = {kind: pipelined(rank, kind) for kind in NEGATIVES}
    outcomes["gathered"] = gathered(rank)
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def distributed(wrapper):
    """The wrapper with its table on one of the ranks."""
    whole = {"t_category": ParameterConstraints(sharding_types=["table_wise"])}
    planner = EmbeddingShardingPlanner(Topology(2, "cpu"), constraints=whole)
    sharders = get_default_sharders()
    plan = planner.collective_plan(wrapper, sharders, dist.group.WORLD)
    table = wrapper.get_parameter(TABLE).detach().clone()
    model = DistributedModelParallel(wrapper, device=torch.device("cpu"), plan=plan, sharders=sharders)
    for shard in model.state_dict()[TABLE].local_shards():
        shard.tensor.detach().copy_(table)  # sharding draws new weights
    return model


def sharded(rank):
    """Tables sharded over both ranks, and a rank without rows."""
    model = distributed(small_wrapper())
    mine = [random_batch(s, part=rank_slice(rank, 0)) for s in range(STEPS)]
    return outcome(model.module, model, mine[:1])


def pipelined(rank, negatives):
    """The losses of TorchRec's pipelined trainer, and the warnings it logs."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("torchrec").addHandler(handler)
    logging.getLogger("torchrec").setLevel(logging.INFO)
    device = torch.device("cpu")
    model = distributed(small_wrapper(negatives=negatives))
    optimizer = torch.optim.SGD(model.module.model.over_arch.parameters(), lr=0.0)
    pipeline = TrainPipelineSparseDist(model, optimizer, device)
    batches = iter([random_batch(s, part=rank_slice(rank, 9)) for s in range(STEPS)])
    losses = [float(pipeline.progress(batches)["loss_uu"]) for _ in range(STEPS)]
    return {"losses": losses, "messages": messages, "step": int(model.module.step)}


def gathered(rank):
    rows = (torch.arange(3.0)[: 3 * rank] + 10 * rank).reshape(-1, 1).requires_grad_()  # none, three
    out = gather_rows(rows)
    (out * torch.tensor([[1.0], [2.0], [3.0]]) * (rank + 1)).sum().backward()
    return out.detach(), rows.grad


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    status, printed = Launch(2, work, folder).end()
    assert status == 0, printed[-5000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_on_the_joined_batch(two_ranks, name):
    expected = one_rank(CASES[name][1])
    outcomes = [rank[name] for rank in two_ranks]
    losses = torch.tensor([rank["losses"] for rank in outcomes])
    torch.testing.assert_close(losses.mean(0), torch.tensor(expected["losses"]))  # mean of the ranks' losses
    assert losses[0, :, 1:].equal(losses[1, :, 1:])  # the reported parts are global
    assert outcomes[0]["gradients"].keys() == expected["gradients"].keys()
    for rank in outcomes:
        for kind in ("gradients", "buffers"):
            torch.testing.assert_close(rank[kind], expected[kind], rtol=1e-4, atol=1e-6)


def test_sharded_tables_and_a_rank_without_rows(two_ranks):
    expected = one_rank({}, steps=1)
    for rank in two_ranks:
        sharded_outcome = rank["sharded"]
        dense = {n: g for n, g in expected["gradients"].items() if n != TABLE}
        torch.testing.assert_close(sharded_outcome["gradients"], dense, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            torch.tensor(sharded_outcome["losses"])[:, 1:], torch.tensor(expected["losses"])[:, 1:]
        )


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_the_pipelined_trainer_really_pipelines(two_ranks, negatives):
    outcomes = [rank["pipelined"][negatives] for rank in two_ranks]
    for outcome_of_rank in outcomes:
        messages = outcome_of_rank["messages"]
        assert any("will be pipelined" in m for m in messages)
        assert not any("NOT be pipelined" in m for m in messages)
        assert outcome_of_rank["step"] == STEPS
    expected = [loss_uu for *_, loss_uu in one_rank({"negatives": negatives})["losses"]]
    assert outcomes[0]["losses"] == pytest.approx(expected, rel=1e-4)


def test_gathered_rows(two_ranks):
    for rank, (rows, gradient) in enumerate(pair["gathered"] for pair in two_ranks):
        assert rows.flatten().tolist() == [10.0, 11.0, 12.0]
        assert gradient.flatten().tolist() == ([] if rank == 0 else [3.0, 6.0, 9.0])
