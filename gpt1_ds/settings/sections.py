"""Every setting of a run, with its default, its bounds and its description.

The YAML decides what a run means; the DeepSpeed JSON decides how it is computed (see
`deepspeed_json.py`). Defaults are those of the paper (Radford et al. 2018, section 4.1). The text
under each field is what `--help` prints (`command_line.py`); the bounds beside its default are
what `loading.py` checks.
"""

from dataclasses import dataclass, field
from typing import TypedDict, TypeVar, cast

from gpt1_ds.base.bounds import (
    COUNT,
    COUNT_OR_ZERO,
    LARGEST_COUNT,
    NUMBER,
    POSITIVE,
    SHARE,
    SHARE_BELOW_1,
    Bounds,
)

Value = TypeVar("Value")

SEED = Bounds(high=2**64, open_high=True)
DEPTH = Bounds(high=10_000, open_low=True)
WIDTH = Bounds(high=10_000_000, open_low=True)
RAMP = Bounds(high=10_000_000)
"""A run adds up the batches of its ramp at the start."""
AMOUNT = Bounds(high=1e18, open_low=True)
WORK = Bounds(high=1e30, open_low=True)
SECONDS = Bounds(high=1e9, open_low=True)


class Shape(TypedDict):
    """The four numbers of a decoder, as `gpt1_ds.model.gpt.GPTConfig` names them."""

    n_layer: int
    n_head: int
    n_embd: int
    n_ctx: int


PRESETS: dict[str, Shape] = {
    "gpt1": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 512},
    "gpt1-tiny": {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_ctx": 128},
    # The same block at the widths of Brown et al. 2020, table 2.1 (context: theirs).
    "350m": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "n_ctx": 2048},
    "1.3b": {"n_layer": 24, "n_head": 16, "n_embd": 2048, "n_ctx": 2048},
    "6.7b": {"n_layer": 32, "n_head": 32, "n_embd": 4096, "n_ctx": 2048},
    "13b": {"n_layer": 40, "n_head": 40, "n_embd": 5120, "n_ctx": 2048},
}


def setting(
    default: Value,
    bounds: Bounds | None = None,
    *,
    choices: tuple[str, ...] = (),
    path: bool = False,
) -> Value:
    """A field with bounds or choices, for a section's class.

    The bounds of a mapping are those of its values. `path`: a `~` at its start is the home folder.
    """
    if choices:
        bounds = Bounds(choices=choices)
    metadata = {"bounds": bounds, "path": path}
    if isinstance(default, dict):
        return cast(Value, field(default_factory=default.copy, metadata=metadata))
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    name: str = "gpt1"
    """Name of the run: its folder below run.dir."""
    dir: str = setting("runs", path=True)
    """Folder of all runs; `tensorboard --logdir` takes it."""
    seed: int = setting(42, SEED)
    """Seed of initialisation, dropout and data order."""


@dataclass
class FidelityConfig:
    kind: str = setting("paper", choices=("paper", "as_released"))
    """paper, or as_released: the parts of OpenAI's released code (docs/pretraining.md), each one a
    setting of its own, which wins; `fidelity: as_released` for short."""


@dataclass
class ModelConfig:
    preset: str = setting("gpt1", choices=tuple(PRESETS))
    """Shape of the decoder: gpt1 (12/12/768/512), gpt1-tiny, 350m, 1.3b, 6.7b, 13b; the
    numbers below override it."""
    kind: str = setting("transformer", choices=("transformer", "lstm"))
    """transformer, or lstm (the paper's ablation): one layer of 2,048 units for n_embd 768."""
    n_layer: int | None = setting(None, DEPTH)
    """Number of blocks; null: the preset's."""
    n_head: int | None = setting(None, DEPTH)
    """Attention heads a block; null: the preset's."""
    n_embd: int | None = setting(None, WIDTH)
    """Width of the residual stream; null: the preset's."""
    n_ctx: int | None = setting(None, WIDTH)
    """Tokens of context, and of a training window; null: the preset's."""
    embd_pdrop: float = setting(0.1, SHARE_BELOW_1)
    """Dropout on the sum of token and position embedding."""
    attn_pdrop: float = setting(0.1, SHARE_BELOW_1)
    """Dropout on attention probabilities."""
    resid_pdrop: float = setting(0.1, SHARE_BELOW_1)
    """Dropout on the output of attention and of the MLP."""
    embd_dropout: str = setting("vectors", choices=("vectors", "matrix"))
    """What embd_pdrop drops: elements of the looked-up vectors, or of the embedding matrix of each
    micro-batch, which the head sees too (the released code's)."""
    position_logits: bool = False
    """Positions have rows in the softmax of the head too, as in the released code's matrix."""


@dataclass
class DataConfig:
    shards: str = setting("shards", path=True)
    """Shard directory written by data_prep.build_shards, or its URL (https://, s3://, file://)."""
    weights: dict[str, float] = setting({}, NUMBER)
    """Share of each corpus in the mixture, {NAME: WEIGHT}; empty: by tokens."""
    order: str | None = setting(None, choices=("global", "grouped", "grouped-1"))
    """Shuffle: global or grouped (docs/data.md); null: grouped if shards is a URL, else global."""
    verify: bool = True
    """Hash every shard before training, shared out among ranks (1 to 2 s a GB and rank);
    false: sizes only."""
    quarantine: bool = False
    """Train without damaged shards instead of refusing them; what is lost is told."""
    cache: str | None = setting(None, path=True)
    """Folder for shards behind a URL, shared by a node's ranks; null: gpt1-shards-UID in TMPDIR."""
    cache_bytes: int = setting(20_000_000_000, COUNT)
    """Most bytes of shards kept there."""


@dataclass
class TokenizerConfig:
    kind: str | None = setting(None, choices=("sentencepiece", "openai"))
    """sentencepiece or openai: refuse shards made with another; null: whatever the shards hold."""
    openai_pipeline: str | None = setting(None, choices=("transformers", "original"))
    """transformers or original: refuse data whose OpenAI codec is set otherwise; null:
    whatever they hold."""


@dataclass
class TrainConfig:
    max_steps: int | None = setting(None, COUNT)
    """Optimizer steps; with train.epochs, train.tokens or train.flops also given, whichever ends
    first."""
    epochs: float | None = setting(100.0, AMOUNT)
    """Passes over the training data."""
    tokens: float | None = setting(None, AMOUNT)
    """Pre-training: targets seen; of max_steps, epochs, tokens and flops, whichever ends first."""
    flops: float | None = setting(None, WORK)
    """Pre-training: FLOPs of the trained tokens (docs/pretraining.md); whichever ends first."""
    global_batch: int = setting(64, COUNT)
    """Windows (fine-tuning: examples) an optimizer step, over all ranks."""
    batch_warmup_steps: int = setting(0, RAMP)
    """Pre-training: steps over which the batch grows from train.batch_start to
    train.global_batch; 0: none."""
    batch_start: int | None = setting(None, COUNT)
    """Windows of the first step then, and what the batch grows in multiples of."""
    micro_batch: int | None = setting(None, COUNT)
    """Windows a rank in one forward/backward; null: the JSON's, or the rank's share up to 16."""
    grad_clip: float = setting(1.0, NUMBER)
    """Largest global gradient norm; 0: no clipping."""
    max_skipped: int = setting(20, COUNT)
    """Non-finite steps in a row before training stops with exit code 4."""
    spike_nats: float | None = setting(2.0, POSITIVE)
    """Pre-training: a logged loss so far above the median of the last 20 sends the run back
    (docs/resume.md); null: never."""
    max_rollbacks: int = setting(3, COUNT_OR_ZERO)
    """Loss spikes undone in a run before it stops with exit code 4."""
    activation_checkpointing: bool = False
    """Keep a block's input alone for backward and compute the rest again: less memory, a
    third more time."""
    compile: bool | str = setting("auto", choices=("auto", "true", "false"))
    """torch.compile of the blocks (needs g++, a GPU gcc and triton): tens of seconds at the start;
    auto: never yet (docs/performance.md)."""
    cuda_graphs: bool = False
    """Pre-training on GPUs: launch a block's kernels as one CUDA graph, for small micro-batches
    (ZeRO 0 to 2, one micro-batch a step)."""
    deterministic: bool = False
    """Take only algorithms that give the same bits each time, so that a resume is exact on a GPU
    too, as it is on a CPU: slower, more memory (docs/resume.md)."""


@dataclass
class OptimConfig:
    kind: str = setting("adamw", choices=("adamw", "openai_adam"))
    """adamw (decoupled decay), or openai_adam (the released code's Adam: decay inside the
    update)."""
    lr: float = setting(2.5e-4, POSITIVE)
    """Peak learning rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Adam's two decay rates."""
    eps: float = setting(1e-8, POSITIVE)
    """Adam's epsilon."""
    weight_decay: float = setting(0.01, NUMBER)
    """Decay of all matrices, embeddings included; none on biases and LayerNorm gains."""


@dataclass
class ScheduleConfig:
    kind: str = setting("cosine", choices=("cosine", "linear", "constant", "wsd"))
    """Rate after warm-up: cosine to 0, linear to 0, constant, or wsd (constant, then linear
    to 0 at the end)."""
    decay_fraction: float = setting(0.1, SHARE)
    """wsd: share of all steps, the last ones, in which the rate falls."""
    warmup_steps: int | None = setting(2000, COUNT_OR_ZERO)
    """Steps of linear warm-up from 0; null: schedule.warmup_fraction of the run."""
    warmup_fraction: float = setting(0.002, SHARE)
    """Warm-up as a share of all steps, where schedule.warmup_steps is null."""
    progress: str = setting("after_warmup", choices=("after_warmup", "absolute"))
    """What cosine and linear fall over: the steps after the warm-up, or all steps, where the first
    update has rate 0 (the released code's)."""
    total_steps: int | None = setting(None, COUNT)
    """Steps that the schedule spans, whatever the budget of the run; null: all steps of the run."""


@dataclass
class EvalConfig:
    every: int | None = setting(1000, COUNT)
    """Steps between validations, and one at the end; null: that one alone (fine-tuning: once an
    epoch)."""
    batches: int | None = setting(50, COUNT)
    """Global batches of each validation corpus; null: all of it."""
    zero_shot: list[str] | None = setting(None, choices=("blimp", "lambada"))
    """Pre-training: benchmarks that are scored while training goes on, [blimp, lambada]; null:
    none."""
    zero_shot_every: int | None = setting(None, COUNT)
    """Steps between these scores, and one at the end; null: those of eval.every."""
    zero_shot_data: str = setting("zero_shot", path=True)
    """Folder of BLiMP.zip (or its data/) and of lambada_openai.jsonl."""
    zero_shot_sample: int | None = setting(100, COUNT)
    """Pairs of each of BLiMP's paradigms, and ten times as many passages of LAMBADA, the same ones
    in all runs; null: all."""


@dataclass
class CheckpointConfig:
    every: int = setting(1000, COUNT)
    """Steps between checkpoints; also at the end and on a stop request."""
    keep: int = setting(3, COUNT)
    """Checkpoints kept, newest first."""
    keep_every: int | None = setting(None, COUNT)
    """Beside them, every checkpoint of a multiple of so many steps is kept for good; null: none."""
    at_words: list[float] | None = setting(None, COUNT)
    """Pre-training: one more, kept for good, at the first step at which so many words of text were
    seen, [1e6, 2e6] (docs/pretraining.md); null: none."""
    mirror: str | None = setting(None, path=True)
    """URL (s3://, gs://, file://) to which each checkpoint is copied in the background, and from
    which a start whose run folder is gone or older restores the newest one; null: none."""
    mirror_keep: int | None = setting(3, COUNT)
    """Checkpoints kept there, newest first; null: all."""
    compare_replicas: bool = True
    """Compare the ranks' copies of weights and moments before a checkpoint is written; copies that
    differ end the run with exit code 4 (docs/resume.md)."""
    stall_seconds: float = setting(120.0, SECONDS)
    """A file that has made no progress for so long while it is written counts as hanging: training
    goes on without further checkpoints until it moves again (docs/resume.md)."""


@dataclass
class LogConfig:
    every: int = setting(10, COUNT)
    """Steps between lines of metrics.jsonl and TensorBoard points."""
    layer_norms: bool = False
    """Pre-training: with them the norm of weights and gradients of each block (costs a
    reduction of the model)."""
    samples_every: int | None = setting(None, COUNT)
    """Pre-training: steps between samples of generated text, taken with a validation; null:
    none."""
    prompt: str = ""
    """What the samples go on from; empty: the beginning of a document."""
    profile: int | None = setting(None, COUNT)
    """The Chrome trace and the table of operators of this step go to the run's
    profile/; null: none."""
    slow_ratio: float = setting(1.3, POSITIVE)
    """A rank that takes so many times as long for data and forward as the median of the others, 5
    lines in a row, is named on the console."""


@dataclass
class DistributedConfig:
    timeout_seconds: float = setting(600.0, SECONDS)
    """Longest wait for a peer in a collective before the run ends with exit code 5."""


@dataclass
class InitConfig:
    checkpoint: str | None = setting(None, path=True)
    """Start from these weights: a run folder or one of its checkpoints; none: draw them
    from run.seed."""


@dataclass
class TaskConfig:
    name: str = "sst2"
    """Task to fine-tune: cola, conll2003, mnli, mrpc, qnli, qqp, race, rte, scitail, snli, sst2,
    storycloze, stsb, wnli, wnut17; your own, described by task.kind and so on, has any name."""
    data: str = setting("", path=True)
    """Folder of the task's files in the publisher's layout."""
    lm_coef: float = setting(0.5, SHARE)
    """Weight of the language-modelling loss (the paper's lambda), in [0, 1]."""
    task_coef: float = setting(1.0, SHARE)
    """Weight of the task's loss, in [0, 1]."""
    lm_mean: str = setting("token", choices=("token", "sequence"))
    """Mean of the language-modelling loss: over all tokens of a batch, or over the sequences of
    each one's mean (the released code's)."""
    pool: str = setting("last", choices=("last", "first"))
    """State the head reads: last (at <e>) or first (sees only <s>: warns)."""
    clf_pdrop: float = setting(0.1, SHARE_BELOW_1)
    """Dropout before the task head."""
    label_all_subtokens: bool = False
    """Token classification: train on every sub-token of a word instead of its first."""
    max_examples: int | None = setting(None, COUNT)
    """Training examples used, from the start of a seeded shuffle; null: all."""
    n_transfer: int | None = setting(None, Bounds(low=-1, high=LARGEST_COUNT))
    """Blocks taken from init.checkpoint, from the first on; 0: the embeddings only; -1: no
    weights; null: all."""
    patience: int | None = setting(None, COUNT)
    """Evaluations without a better score after which training ends; null: none."""
    class_weights: str | list[float] | dict[str, float] | None = setting(
        None, Bounds(choices=("balanced",))
    )
    """Weight of each class in the task's loss, a mean over the weights of a batch: balanced (N
    examples / K classes / examples of the class), a list in the order of the labels, or
    {LABEL: WEIGHT} (others: 1); null: all alike."""
    sampling: str = setting("shuffled", choices=("shuffled", "balanced", "plain"))
    """Examples of an epoch: shuffled (each once, like lengths together), balanced (as many draws,
    each class equally often), or plain (each once, without regard to length)."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is smaller than the others."""
    split: str = setting("hash", choices=("hash", "released"))
    """Story Cloze without a dev file: a fifth of the stories by a hash, or the released code's 374
    of 1,871."""
    truncation: str = setting("longest", choices=("longest", "fields"))
    """Texts too long for the context: the longest ones are cut, or each to n_ctx // 2 - 2 tokens
    (the released code's; not for kinds with one text)."""
    predictions_with_text: bool = False
    """Add the texts of each example to predictions-SPLIT.tsv."""
    squared_error: bool = False
    """Similarity scores (STS-B) as one number by squared error, instead of soft classes."""
    kind: str | None = None
    """Your own task: classification, entailment, similarity[_score], multiple_choice,
    token_classification."""
    columns: list[str] | None = None
    """Your own task: columns of the texts (context, question, then the answers) and last
    that of the label."""
    labels: list[str] | None = None
    """Your own task: its labels (kinds of entities; the scores 0, 1, ..; a name for each
    answer)."""
    files: dict[str, str] | None = setting(None, path=True)
    """File of each split below task.data; null: the publisher's names, and for your own task
    {train: train.*, dev: dev.*, test: test.*}."""
    metrics: list[str] | None = None
    """Of classes accuracy, f1 (of the second of two labels; of more, the mean over all) and
    matthews; of scores pearson and spearman; of tags entity_f1; null: the task's. The first
    chooses the best step."""


@dataclass
class PretrainConfig:
    """Sections of a pre-training YAML."""

    run: RunConfig = field(default_factory=RunConfig)
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    init: InitConfig = field(default_factory=InitConfig)


@dataclass
class FinetuneConfig(PretrainConfig):
    """Sections of a fine-tuning YAML.

    Defaults are those of the paper (section 4.1, "Fine-tuning details"). With `init.checkpoint`
    the model's shape and the tokenizer are those of the checkpoint; from scratch they are those of
    the section `model` and of `data.shards`.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(name="finetune"))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=3.0, global_batch=32))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=6.25e-5))
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(kind="linear", warmup_steps=None)
    )
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(every=None, batches=None))
