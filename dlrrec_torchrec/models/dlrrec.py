"""DLRREC: a TorchRec DLRM whose dense arch hosts projection towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DLRM, InteractionArch
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.models.content import ContentTables
from dlrrec_torchrec.models.interactions import CrossInteraction, OverArch, PairwiseInteraction
from dlrrec_torchrec.models.list_head import ListHead
from dlrrec_torchrec.models.managed import ManagedTables
from dlrrec_torchrec.models.scoring import Scoring
from dlrrec_torchrec.models.towers import NORMS, MultiModalDenseArch
from dlrrec_torchrec.models.wide import ResidualPath, WidePath
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import Modality

INTERACTIONS = ("dot", "pairwise", "dcn")


class DLRREC(Scoring, DLRM):
    """Dense MLP, pooled embeddings and one reduced vector per modality, an interaction, and a top MLP.

    Args:
        embedding_bag_collection: tables of one dimension E; T features in all. None: no tables, T is 0.
        dense_in_features: width of the dense features.
        dense_arch_layer_sizes: of the dense MLP; the last is E for `dot`.
        over_arch_layer_sizes: of the top MLP; the last is 1.
        modalities: of the content vectors, in order; may be empty.
        towers: modality -> layer sizes of its tower; the last is E for `dot`.
        tower_norm: "batch", "layer" or "none"; tower_dropout: on the towers' input.
        interaction: "dot" (DLRM: all dot products of vectors), "pairwise" (all products of scalars) or "dcn".
        dropout: between the layers of the top MLP.
        content: tables of the content vectors; None: they come with the rows.
        managed: further tables, of dimension E too.
        wide: add a linear path over the dense features to the logit, and standardise them for the dense MLP
            too (`wide.WidePath`). The deep part's last layer then starts at zero: the first logits are the
            linear path's.
        products: two ranges of dense features whose products the wide path has too.
        frozen: the towers stay as they are: in eval mode, without gradients.
        residual: hidden layers of an MLP of the standardised features, added to the wide path
            (`wide.ResidualPath`); none: without.
        list_head: for lists of the best items; apart from the logit.
        dense_device: where the dense part is built.

    With a wide path predictions are by its weights, and the residual path's, as they were kept last
    (`keep_base`), plus the deep part's logit by the buffer `share`, which is 1 until validation says better
    (`training.trainer`).

    Raises:
        DataError: sizes or names that do not fit, naming the flags.

    Example::

        >>> from torchrec.modules.embedding_configs import EmbeddingBagConfig
        >>> text = Modality("item_text", "item", "text", source="reviews", dim=384, encoder="MiniLM")
        >>> table = EmbeddingBagConfig(
        ...     name="t_user", embedding_dim=32, num_embeddings=100, feature_names=["user"]
        ... )
        >>> model = DLRREC(
        ...     EmbeddingBagCollection(tables=[table]),
        ...     dense_in_features=7,
        ...     dense_arch_layer_sizes=[64, 32],
        ...     over_arch_layer_sizes=[64, 1],
        ...     modalities=[text],
        ...     towers={"item_text": [256, 32]},
        ... )
        >>> users = KeyedJaggedTensor(["user"], torch.tensor([3, 8]), lengths=torch.tensor([1, 1]))
        >>> logits = model(torch.randn(2, 7), users, {"item_text": torch.randn(2, 384)})
        >>> logits.shape
        torch.Size([2])
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection | None,
        dense_in_features: int,
        dense_arch_layer_sizes: list[int],
        over_arch_layer_sizes: list[int],
        modalities: Sequence[Modality],
        towers: Mapping[str, Sequence[int]],
        tower_norm: str = "batch",
        tower_dropout: float = 0.0,
        interaction: str = "dot",
        dropout: float = 0.1,
        content: ContentTables | None = None,
        managed: ManagedTables | None = None,
        wide: bool = False,
        products: tuple[range, range] | None = None,
        residual: Sequence[int] = (),
        list_head: ListHead | None = None,
        frozen: bool = False,
        dense_device: torch.device | None = None,
    ) -> None:
        if embedding_bag_collection is not None:
            embedding_dim = embedding_bag_collection.embedding_bag_configs()[0].embedding_dim
        else:
            embedding_dim = dense_arch_layer_sizes[-1]
        sizes = {"dense_arch": dense_arch_layer_sizes, "over_arch": over_arch_layer_sizes}
        _check(sizes, modalities, towers, embedding_dim, interaction, tower_norm, tower_dropout, dropout)

        # The parent makes the sparse arch; the three others are our own, as in TorchRec's DLRM_DCN.
        if embedding_bag_collection is not None:
            super().__init__(
                embedding_bag_collection, dense_in_features, [embedding_dim], [1, 1], dense_device
            )
        else:  # a parent without tables is not to be had
            nn.Module.__init__(self)
            self.sparse_arch = None
        self.modalities = tuple(modalities)
        self.interaction = interaction
        self.content = content
        self.managed = managed
        self.list_head = list_head
        self.dense_arch = MultiModalDenseArch(
            dense_in_features,
            list(dense_arch_layer_sizes),
            {modality.name: modality.dim for modality in modalities},
            towers,
            tower_norm,
            tower_dropout,
            dense_device,
        )
        self.frozen = frozen
        if frozen:
            self.dense_arch.towers.requires_grad_(False)
        tables = (self.sparse_arch.F if self.sparse_arch else 0) + (len(managed.features) if managed else 0)
        vectors = tables + len(self.modalities)
        reduced = sum(towers[modality.name][-1] for modality in self.modalities)
        width = dense_arch_layer_sizes[-1] + tables * embedding_dim + reduced
        if interaction == "dot":
            self.inter_arch = InteractionArch(vectors).to(dense_device)
            over_in_features = embedding_dim + vectors * (vectors + 1) // 2
        else:
            kind = PairwiseInteraction if interaction == "pairwise" else CrossInteraction
            self.inter_arch = kind(width).to(dense_device)
            over_in_features = self.inter_arch.out_features
        self.over_arch = OverArch(over_in_features, over_arch_layer_sizes, dropout, dense_device)
        self.wide = WidePath(dense_in_features, products, device=dense_device) if wide else None
        self.residual = ResidualPath(dense_in_features, residual, dense_device) if residual else None
        if wide:
            self.register_buffer("share", torch.ones((), device=dense_device))
            for parameter in self.over_arch.model[-1].parameters():
                nn.init.zeros_(parameter)

    def train(self, mode: bool = True) -> DLRREC:
        super().train(mode)
        if self.frozen:
            self.dense_arch.towers.eval()
        return self

    def predict(
        self,
        dense: Tensor,
        sparse: KeyedJaggedTensor,
        reduced: dict[str, Tensor],
        managed: KeyedJaggedTensor | None = None,
    ) -> Tensor:
        """Logits f32 [B] of rows with dense features f32 [B, D], jagged ids and reduced vectors."""
        if self.wide is None:
            return self._deep(dense, sparse, reduced, managed)
        standardized, dense = self._standardized(dense)
        return self._kept(standardized, dense) + self.share * self._deep(dense, sparse, reduced, managed)

    def parts(
        self,
        dense: Tensor,
        sparse: KeyedJaggedTensor,
        reduced: dict[str, Tensor],
        managed: KeyedJaggedTensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Logits f32 [B]: of wide and residual path together as they are now, and as they were kept, None
        without; and of the deep part."""
        if self.wide is None:
            return None, None, self._deep(dense, sparse, reduced, managed)
        standardized, dense = self._standardized(dense)
        now = self.wide(standardized)
        if self.residual is not None:
            now = now + self.residual(dense)
        return now, self._kept(standardized, dense), self._deep(dense, sparse, reduced, managed)

    def keep_base(self) -> None:
        """Predict by wide and residual path as they are now."""
        self.wide.keep()
        if self.residual is not None:
            self.residual.keep()

    def _standardized(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """All features of the wide path, and the dense ones among them."""
        standardized = self.wide.standardize(dense)
        return standardized, standardized[:, : self.wide.in_features]

    def _kept(self, standardized: Tensor, dense: Tensor) -> Tensor:
        logits = self.wide.predict(standardized)
        return logits if self.residual is None else logits + self.residual.predict(dense)

    def _deep(
        self,
        dense: Tensor,
        sparse: KeyedJaggedTensor,
        reduced: dict[str, Tensor],
        managed: KeyedJaggedTensor | None,
    ) -> Tensor:
        embedded_dense = self.dense_arch(dense)
        embedded = [] if self.sparse_arch is None else [self.sparse_arch(sparse)]  # [B, T, E]
        if self.managed is not None:
            embedded.append(self.managed(managed))
        content = [reduced[modality.name] for modality in self.modalities]
        if self.interaction != "dot":
            flat = [vectors.flatten(1) for vectors in embedded]
            crossed = self.inter_arch(torch.cat([embedded_dense, *flat, *content], dim=1))
        elif embedded or content:
            vectors = torch.cat([*embedded, *(v.unsqueeze(1) for v in content)], dim=1)
            crossed = self.inter_arch(embedded_dense, vectors)
        else:
            crossed = embedded_dense
        return self.over_arch(crossed).squeeze(1).float()


def _check(
    sizes: dict[str, Sequence[int]],
    modalities: Sequence[Modality],
    towers: Mapping[str, Sequence[int]],
    embedding_dim: int,
    interaction: str,
    tower_norm: str,
    tower_dropout: float,
    dropout: float,
) -> None:
    for flag, choices, value in (
        ("interaction", INTERACTIONS, interaction),
        ("tower_norm", NORMS, tower_norm),
    ):
        if value not in choices:
            raise DataError(f"model.{flag}: {value!r} is not one of {', '.join(choices)}")
    names = [modality.name for modality in modalities]
    if len(set(names)) != len(names):
        raise DataError(f"model.modalities: {', '.join(names)} names a modality twice")
    for flag, share in (("tower_dropout", tower_dropout), ("dropout", dropout)):
        if not 0 <= share < 1:
            raise DataError(f"model.{flag}: {share} is not a share; give 0 <= dropout < 1")
    tower_flags = {modality.name: f"{modality.kind}_tower" for modality in modalities}
    for name, layers in [*sizes.items(), *((tower_flags[name], towers[name]) for name in names)]:
        if not layers or not all(isinstance(n, int) and n > 0 for n in layers):
            raise DataError(f"model.{name}: {list(layers)} must be one or more positive layer sizes")
    if sizes["over_arch"][-1] != 1:
        raise DataError(f"model.over_arch: {list(sizes['over_arch'])} must end in 1, the logit")
    if interaction != "dot":
        return
    ends = {"model.dense_arch": sizes["dense_arch"][-1]}
    ends |= {
        f"{name}'s tower (model.towers.{name}, else model.{tower_flags[name]})": towers[name][-1]
        for name in names
    }
    for flag, size in ends.items():
        if size != embedding_dim:
            raise DataError(
                f"model.interaction=dot needs vectors of one size: the last of {flag} is {size}, "
                f"model.embedding_dim is {embedding_dim}; end model.dense_arch and every tower "
                "(model.text_tower, image_tower, other_tower, towers.NAME) in model.embedding_dim, or use "
                "pairwise or dcn"
            )
