"""One dataclass per stage, one YAML file per run.

The dataclasses stop at each stage's entry function: everything below takes plain arguments. Every field's
`help` is what `dlrrec STAGE --help` prints, and every field is a flag (`max_rejected` is `--max-rejected`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import field

from dlrrec_torchrec.config.extract_section import ExtractConfig
from dlrrec_torchrec.config.llm_section import LlmConfig
from dlrrec_torchrec.config.pictures_section import PicturesConfig
from dlrrec_torchrec.config.table_section import MOST_SEED, TableConfig, option


@dataclasses.dataclass
class IngestConfig:
    """A source of reviews -> the review table."""

    source: str = option(
        "synthetic", "form of the source", ("synthetic", "google", "amazon", "yelp", "movielens", "table")
    )
    reviews: str = option("", "file, folder or glob with the reviews (not for 'synthetic')")
    items: str = option("", "file or folder with item metadata (optional)")
    test: str = option("", "file with a published test part (optional; use with split.method=published)")
    columns: dict = option(
        {}, "for 'table': which column is what, as user=Reviewer item=Restaurant rating=Rating text=Review"
    )
    item_columns: dict = option(
        {},
        "for 'table': columns of the metadata, as item=Name title=Name categories=Cuisines price=Cost",
    )
    max_rejected: float = option(0.05, "stop if more than this share of the rows is bad", least=0, most=1)
    size: str = option("small", "for 'synthetic': the size of the world", ("tiny", "small", "paper"))
    seed: int = option(0, "for 'synthetic': the seed of the world", least=0, most=MOST_SEED)


@dataclasses.dataclass
class SplitConfig:
    """Reviews -> training, validation and test rows."""

    method: str = option(
        "random",
        "random: 3:1 as in the papers; last: each user's last, and for validation the one before; time: all "
        "from one point in time on, and validation from an earlier one; folds: one of K; published: the "
        "source's",
        ("random", "last", "time", "folds", "published"),
    )
    min_reviews: int = option(2, "drop users and items with fewer reviews, until stable", least=1)
    test_share: float = option(0.25, "share of the rows that is tested (random, time)", above=0, below=1)
    val_share: float = option(
        0.1, "share of the remaining rows that selects the model (none under 'paper')", least=0, below=1
    )
    positive_rating: float | None = option(
        None,
        "a rating of at least this is a positive label (default: three quarters up the scale, 4 of 1 to 5)",
    )
    cold_items: float = option(
        0.0,
        "share of the items that lose all training and validation rows: a test of what content alone can do",
        least=0,
        below=1,
    )
    folds: int = option(5, "number of folds (folds)", least=2)
    fold: int = option(0, "the fold that is tested (folds)", least=0)
    seed: int = option(0, "seed of the random assignment", least=0, most=MOST_SEED)


@dataclasses.dataclass
class SwingStageConfig:
    """Training rows -> SWING neighbours of users and of items."""

    preset: str = option("dlrrec", "published variant")
    similarity: str = option(
        "swing",
        "what makes two ids neighbours; all except swing count single shared partners",
        ("swing", "cosine", "jaccard", "common", "adamic_adar"),
    )
    pairs: str = option(
        "all",
        "training rows that count: all, or those with label 1 (liked; a row's own label then decides whether "
        "it takes part in its positives)",
        ("all", "liked"),
    )
    alpha: float | None = option(None, "smoothing in 1 / (alpha + overlap); default: the preset's", least=0)
    top_k: int = option(20, "neighbours kept for each id", least=1)
    min_user_items: int = option(2, "ignore ids with fewer distinct partners", least=1)
    max_item_users: int = option(1000, "sample at most this many partners of an id (0: all)", least=0)
    threads: int = option(0, "threads (0: all cores)", least=0)
    seed: int = option(0, "seed of the sampling", least=0, most=MOST_SEED)


@dataclasses.dataclass
class PrepareConfig:
    """Splits, content and neighbours -> training shards and entity tables."""

    text: str = option("mean", "text vectors: mean of the reviews, or the summary's", ("mean", "summary"))
    statistics: str = option(
        "folds",
        "what a training row's features are made of: the reviews of other folds; those of earlier blocks of "
        "time (ordered, with extract.fold_by=time); all except its own (row, for the papers' tables: has no "
        "affinity, and rows compared with each other tell their labels)",
        ("folds", "ordered", "row"),
    )
    dense: list = option(
        ["item_count", "user_mean", "item_mean", "price", "user_count"], "dense features, in order"
    )
    affinity: bool = option(
        True,
        "add what the user's history says of the item, and the item's reviewers of the user, as features",
    )
    smoothing: float = option(
        3.0, "pseudo-reviews of the middle of rating_range added to each mean rating", least=0
    )
    rating_range: list | None = option(
        None,
        "lowest and highest possible rating (default: of the narrowest common scale that holds them all)",
        of=float,
    )
    vectors: dict = option(
        {},
        "vectors that you have: NAME=FILE:ID,VECTOR, where NAME begins with user_ or item_ and FILE is "
        "Parquet (columns ID and VECTOR; default: id,vector), .npz (two arrays; default: ids,vectors) or "
        ".npy (FILE.npy:IDS, where IDS is a .txt with one id a line, or .npy), as item_audio=audio.parquet",
        also=("vectors",),
    )
    modalities: list | None = option(
        None,
        "vectors written into the rows (default: all that there are; none, as --set 'prepare.modalities=[]', "
        "for model.vectors: table)",
    )
    category_types: int = option(179, "category types that have a code, those of most items first", least=1)
    positives: int = option(10, "SWING neighbours kept as positives", least=0)
    rows_per_shard: int = option(8192, "rows of one Parquet shard", least=1)


@dataclasses.dataclass
class ModelConfig:
    """DLRREC: towers inside a DLRM."""

    modalities: list | None = option(
        None, "content vectors to use, one tower each (default: all that the shards hold)"
    )
    vectors: str = option(
        "row",
        "where content vectors are: row (without the row's own review), or table (looked up by id, made of "
        "all training reviews: not leave-one-out; rows need no vectors then)",
        ("row", "table"),
    )
    text_tower: list | None = option(None, "layers of text towers (default: by data size)", of=int, least=1)
    image_tower: list | None = option(None, "layers of image towers (default: by data size)", of=int, least=1)
    other_tower: list | None = option(
        None,
        "layer sizes of the towers of other vectors, as those of prepare.vectors (default: by the size of "
        "the data)",
        of=int,
        least=1,
    )
    towers: dict[str, list] = option(
        {}, "layer sizes of single towers, as item_audio=128,32, in place of the three above"
    )
    joined: list = option(
        [],
        "vectors that one tower reduces together, as user_text+item_text: those of a row's user and item, "
        "one after the other (V0); a vector that is not named has a tower of its own",
    )
    reduction: str = option(
        "joint",
        "how towers are trained: joint, with the ranking loss (DLRREC); upstream, first alone with a linear "
        "layer on the outcome, then kept as they are while the rest is trained (V0, MMREC's two steps); "
        "alone, that first step only",
        ("joint", "upstream", "alone"),
    )
    tower_norm: str = option("batch", "normalisation at the end of a tower", ("batch", "layer", "none"))
    tower_dropout: float | None = option(
        None, "dropout on a tower's input vector (default: by the size of the data)", least=0, below=1
    )
    dense_arch: list = option(
        [64, 32], "layer sizes of the dense arch; for 'dot' the last is embedding_dim", least=1
    )
    over_arch: list | None = option(
        None, "layer sizes of the top MLP (default: by the size of the data)", of=int, least=1
    )
    embedding_dim: int = option(32, "columns of the embedding tables", least=1)
    category: bool = option(True, "pooled category embedding")
    user_id: bool | None = option(None, "embedding of the user id (default: where histories are long)")
    item_id: bool | None = option(None, "embedding of the item id (default: where histories are long)")
    wide: bool = option(
        True,
        "a linear path over the dense features beside the deep part; training starts as their logistic "
        "regression (off: the papers' model)",
    )
    residual: list | None = option(
        None,
        "hidden layers of an MLP beside the wide path, of its features (default: by the data's size)",
        of=int,
        least=1,
    )
    interaction: str = option("dot", "feature interaction", ("dot", "pairwise", "dcn"))
    dropout: float | None = option(None, "of the top MLP (default: by the data's size)", least=0, below=1)
    tables: dict[str, TableConfig] = option(
        {},
        "how a table is kept, as user=dtype=fp16,sharding=row_wise (tables: category, user, item and, with "
        "vectors: table, the modalities)",
    )


@dataclasses.dataclass
class ContrastiveConfig:
    """InfoNCE on the reduced user and item vectors (DLRREC equation 1), weights of equation 2."""

    item_weight: float = option(0.1, "w1, weight of the item-item loss; 0 switches it off", least=0)
    user_weight: float = option(0.1, "w2, weight of the user-user loss; 0 switches it off", least=0)
    learnable: bool = option(False, "learn w1 and w2, starting at the given values")
    temperature: float = option(0.1, "tau", above=0)
    normalize: bool = option(True, "cosine instead of dot product")
    negatives: str = option(
        "corpus",
        "corpus: other entities at random; batch: those of the batch; popularity: at random by training "
        "rows^0.75; semi_hard: of those at random the hardest that are less similar than the positive; "
        "swing_hard: at random, and of each anchor some neighbours' neighbours that are not its own",
        ("corpus", "batch", "popularity", "semi_hard", "swing_hard"),
    )
    num_negatives: int = option(
        256, "negatives drawn from all entities (all but batch), shared by the anchors of a step", least=1
    )
    num_hard: int = option(
        8, "hard negatives of an anchor: those kept by semi_hard, those added by swing_hard", least=1
    )
    positive: str = option("best", "the best neighbour, or one sampled each step", ("best", "sample"))
    permuted: bool = option(
        False, "a control: another entity's neighbours, drawn once, so that the term knows nothing of SWING"
    )
    refresh: int = option(
        0,
        "every N epochs, make positives of both the SWING neighbours and the nearest reduced vectors (0: "
        "never, SWING's stay)",
        least=0,
    )


@dataclasses.dataclass
class ListConfig:
    """The list head: a softmax over the items of a user, for lists of the best items."""

    weight: float = option(1.0, "weight of its loss beside the rating's; 0 switches it off", least=0)
    dim: int = option(64, "numbers of a user's and of an item's vector (a multiple of 4)", least=4)
    tau: float | None = option(
        None, "temperature of the softmax over cosines (default: 0.2 with list.recent, else 0.3)", above=0
    )
    candidates: str = option(
        "auto",
        "the items that a row's item is compared with: catalogue (all), sampled, those of the batch (the two "
        "with log-q correction); auto: all of up to 20,000, else sampled",
        ("auto", "catalogue", "sampled", "batch"),
    )
    num_candidates: int = option(2048, "sampled items, shared by the rows of a step", least=1)
    graded: bool = option(
        True,
        "rows weigh by their rating: low_weight up to two fifths of the range, 1 at its top; off: by their "
        "label, low_weight and 1",
    )
    low_weight: float = option(0.1, "weight of a row that is chosen but not liked", least=0, most=1)
    mask_seen: bool = option(True, "leave a user's other training items out of the candidates")
    content: bool = option(True, "content vectors and categories too, not ids alone")
    id_dropout: float = option(
        0.1, "share of ids left out in a step, so that content learns to stand in", least=0, below=1
    )
    recent: int | None = option(
        None,
        "latest items of a user that its side knows; 0: the order of reviews does not count (default: 27 "
        "where held-out rows come after the user's training rows, else 0)",
        least=0,
        most=1000,
    )
    id_lr: float = option(0.01, "learning rate of its tables", above=0)
    ease: bool = option(True, "add to its scores a share of EASE, which validation chooses")
    val_users: int = option(1000, "users whose lists are measured after each epoch, at most", least=1)


@dataclasses.dataclass
class TrainConfig:
    """Shards -> a trained model. The same code for one process and for N ranks."""

    epochs: int | None = option(
        None, "passes over the training rows, at most (default: by the size of the data)", least=1
    )
    batch_size: int = option(1024, "rows of a step, over all ranks", least=2)
    lr: float | None = option(
        None, "learning rate of the dense part, Adam (default: by the size of the data)", above=0
    )
    table_lr: float | None = option(None, "learning rate of the embedding tables (default: lr)", above=0)
    residual_lr: float | None = option(None, "that of model.residual (default: by the data's size)", above=0)
    table_optimizer: str = option("adam", "fused optimizer", ("adam", "rowwise_adagrad", "sgd"))
    weight_decay: float | None = option(
        None, "decoupled weight decay of the dense part, AdamW (default: by the size of the data)", least=0
    )
    schedule: str = option("constant", "learning rate over the steps", ("constant", "linear", "cosine"))
    warmup_steps: int = option(0, "steps of linear warm-up", least=0)
    class_weights: str = option(
        "none",
        "weights of the two labels in the loss; normalized ones have the mean 1 on the training rows",
        ("none", "basic", "sqrt", "normalized", "sqrt_normalized"),
    )
    select: str = option(
        "auto",
        "what selects the best epoch (strict): AUC, loss, accuracy, or mixture, NDCG@20 + Recall@20 / 2 of "
        "validation users' lists + AUC; auto: the mixture where there is a list head, else AUC",
        ("auto", "mixture", "auc", "loss", "accuracy"),
    )
    patience: int = option(5, "stop after N epochs without a better one (0: never)", least=0)
    device: str = option("auto", "auto, cpu or cuda", ("auto", "cpu", "cuda"))
    precision: str = option(
        "fp32",
        "of the dense part's matrix products (autocast); weights and losses are fp32",
        ("fp32", "bf16"),
    )
    comms: str = option(
        "fp32", "numbers in which ranks exchange embeddings and their gradients", ("fp32", "fp16", "bf16")
    )
    clip_norm: float = option(
        0.0, "largest norm of the dense part's gradients (0: any); fused tables are not clipped", least=0
    )
    accumulate: int = option(
        1, "micro-batches of a step, to save memory; fused tables are updated after each of them", least=1
    )
    compile: bool = option(False, "compile the dense part (torch.compile); needs a C++ compiler")
    workers: int = option(0, "loader processes for each rank", least=0)
    seed: int = option(0, "seed of weights, dropout, negatives and shuffling", least=0, most=MOST_SEED)
    resume: bool = option(True, "go on from the last checkpoint of an interrupted run")
    checkpoint_steps: int = option(0, "save every N steps too, not only after epochs (0: do not)", least=0)
    keep_checkpoints: int = option(2, "newest checkpoints to keep, besides the best", least=1)
    background_checkpoints: bool = option(False, "write checkpoints while the training goes on")
    log_steps: int = option(100, "a line, and a record in steps.jsonl, every N steps (0: none)", least=0)
    profile: int = option(0, "trace N steps with torch.profiler, into the folder profile/", least=0)


@dataclasses.dataclass
class EvaluateConfig:
    """Test rows scored, and all items ranked, by the trained variants and by other methods."""

    peers: bool = option(
        True,
        "fit other people's methods to the same rows too: SVD++, item kNN, LightGBM; for lists popularity, "
        "item kNN, SWING, EASE, ALS, BPR (SVD++, LightGBM, ALS, BPR and item kNN of ratings need the extra "
        "'peers')",
    )
    list_users: int = option(10_000, "users drawn for the lists of all items, at most", least=1)


@dataclasses.dataclass
class RunConfig:
    """A whole run: from raw rows to a report."""

    protocol: str = option(
        "strict",
        "strict: only training rows are seen before the test; paper: as the papers describe",
        ("strict", "paper"),
    )
    seeds: int = option(1, "repeat the run with N seeds; report mean and deviation", least=1)
    refit: bool = option(
        True, "after the evaluation, train the variant that validation prefers on all reviews: what is served"
    )
    ingest: IngestConfig = field(default_factory=IngestConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    llm: LlmConfig = field(default_factory=LlmConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    swing: SwingStageConfig = field(default_factory=SwingStageConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    list: ListConfig = field(default_factory=ListConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    variants: dict = option(
        {"dlrrec": {}, "bce": {"contrastive": {"user_weight": 0.0, "item_weight": 0.0}}},
        "models to train: name -> what differs from this file's model, contrastive, list and train sections",
    )

    def check(self, sections: Iterable[str] | None = None) -> None:
        """Check the values of these sections (default: all), alone, together and as the variants change them.

        Raises DataError naming all that is wrong, each with its setting and flag.
        """
        from dlrrec_torchrec.config.check import config_problems
        from dlrrec_torchrec.config.read import raise_problems

        raise_problems(config_problems(self, sections))
