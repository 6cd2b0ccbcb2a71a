"""What a model asks of its batches, by its settings."""

from __future__ import annotations

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TableConfig
from dlrrec_torchrec.data.draws import Draws, Lookups
from dlrrec_torchrec.data.lookup import side_of


def sparse_keys(model: ModelConfig) -> tuple[str, ...]:
    """Features of `Batch.sparse`, out of "category", "user", "item", that the model has tables `t_KEY` of."""
    on = {"category": model.category, "user": model.user_id, "item": model.item_id}
    return tuple(key for key, wanted in on.items() if wanted and id_scheme(model, key) != "managed")


def managed_keys(model: ModelConfig) -> tuple[str, ...]:
    """Features of `Batch.managed`, out of "user", "item", that the model has managed tables `t_KEY` of."""
    on = {"user": model.user_id, "item": model.item_id}
    return tuple(key for key, wanted in on.items() if wanted and id_scheme(model, key) == "managed")


def id_scheme(model: ModelConfig, key: str) -> str:
    return model.tables.get(key, TableConfig()).ids


def in_tables(model: ModelConfig) -> bool:
    """Whether the model looks its content vectors up in tables."""
    return model.vectors == "table" and bool(model.modalities)


def row_modalities(model: ModelConfig) -> list[str]:
    """The vectors that the model needs in the rows."""
    return [] if in_tables(model) else list(model.modalities)


def build_lookups(
    model: ModelConfig,
    contrastive: ContrastiveConfig | None = None,
    *,
    num_users: int = 0,
    num_items: int = 0,
    seed: int = 0,
) -> Lookups | None:
    """What a loader adds to the batches of the model; None where that is nothing.

    Args:
        contrastive: also look up what stands against the anchors, as the wrapper of this `seed` expects it.
    """
    hashed = {key: model.tables[key].rows for key in sparse_keys(model) if id_scheme(model, key) == "hash"}
    managed = managed_keys(model)
    if not in_tables(model):
        return Lookups(hashed=hashed, managed=managed) if hashed or managed else None
    draws = []
    if contrastive is not None:
        negatives = contrastive.num_negatives if contrastive.negatives == "corpus" else 0
        for side, weight, entities in (
            ("item", contrastive.item_weight, num_items),
            ("user", contrastive.user_weight, num_users),
        ):
            if weight and any(side_of(m) == side for m in model.modalities):
                draws.append(Draws(side, entities, contrastive.positive, negatives, seed))
    return Lookups(tuple(model.modalities), tuple(draws), hashed, managed)
