"""What fused optimizers count as an update; a bias that batch normalisation takes away; quiet imports."""

import dataclasses
import logging

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import dlrrec_torchrec  # noqa: F401
from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.models.towers import Tower
from dlrrec_torchrec.sharding.apply import shard_tables
from dlrrec_torchrec.sharding.table_optimizers import uncounted
from dlrrec_torchrec.training.stage import train
from dlrrec_torchrec.training.trainer import Trainer
from tests.helpers.shards import write_shards


def counts(model):
    kernels = [
        kernel
        for module in model.modules()
        for lookup in getattr(module, "_lookups", ())
        for kernel in lookup.modules()
        if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen)
    ]
    assert kernels
    return [(int(kernel.iter), int(kernel.iter_cpu)) for kernel in kernels]


@pytest.mark.parametrize("error", [None, ValueError])
def test_forward_passes_of_an_evaluation_are_no_steps_of_the_tables(error):
    table = EmbeddingBagConfig(name="t_user", embedding_dim=8, num_embeddings=10, feature_names=["user"])
    ids = KeyedJaggedTensor(["user"], torch.tensor([1, 2]), lengths=torch.tensor([1, 1], dtype=torch.int32))
    with quiet(), process_group("cpu") as ranks:
        tables = EmbeddingBagCollection(tables=[table], device=torch.device("meta"))
        # FBGEMM has no Adam for CPUs, and counts the forward passes of this one in the same way.
        model = shard_tables(
            torch.nn.Sequential(tables), ranks, batch_size=2, table_optimizer="rowwise_adagrad"
        )
        model(ids).values().sum().backward()
        assert counts(model) == [(1, 1)]
        try:
            with uncounted(model), torch.no_grad():
                model(ids).values()
                assert counts(model) == [(2, 2)]
                if error:
                    raise error
        except ValueError:
            pass
        assert counts(model) == [(1, 1)]
        model(ids).values().sum().backward()
        assert counts(model) == [(2, 2)]


def test_no_bias_that_batch_normalisation_takes_away():
    """With one, Adam takes full steps along it though no prediction of a training batch depends on it."""
    for sizes in ([32], [64, 32]):
        assert Tower(384, sizes, "batch").layers[-1].bias is None
        for norm in ("layer", "none"):
            assert Tower(384, sizes, norm).layers[-1].bias is not None
    assert Tower(384, [64, 32], "batch").layers[0].bias is not None


def test_what_fbgemm_logs_at_its_import_is_left_out_and_nothing_else(caplog):
    logging.getLogger().warning("_fbgemm_torch_compat_table has no entry for 1.6.0 of FBGEMM")
    logging.getLogger().warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_a_training_counts_its_micro_batches_and_nothing_else(tmp_path, monkeypatch):
    """FBGEMM's count of updates, at the end of each epoch, before and after the evaluation; and resumed."""
    rows, size, parts = 40, 10, 2
    write_shards(tmp_path / "shards", rows=(rows, 20, 20), users=10, items=10, rows_per_shard=20)
    settings = TrainConfig(
        epochs=2,
        batch_size=size,
        accumulate=parts,
        patience=0,
        table_optimizer="rowwise_adagrad",
        device="cpu",
    )
    seen, evaluate = [], Trainer.evaluate

    def watched(self, held_out):
        before = counts(self.model)
        metrics = evaluate(self, held_out)
        seen.append((before, counts(self.model)))
        if len(seen) == 2:  # epoch 0 is the start
            raise KeyboardInterrupt  # before the epoch is saved: the last checkpoint is that of a step
        return metrics

    monkeypatch.setattr(Trainer, "evaluate", watched)
    contrast = ContrastiveConfig(num_negatives=4)
    arguments = (ModelConfig(), contrast)
    ends = ("strict", tmp_path / "shards", tmp_path / "train")
    with pytest.raises(KeyboardInterrupt):
        train(*arguments, dataclasses.replace(settings, checkpoint_steps=3), *ends)
    train(*arguments, settings, *ends)
    steps = rows // size
    expected = [0, steps * parts, steps * parts, 2 * steps * parts]
    assert seen == [([(n, n)], [(n, n)]) for n in expected]
