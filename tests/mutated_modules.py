"""Which modules `tests/mutants.py` mutates, with their tests; which mutations change nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    path: str
    tests: tuple[str, ...]
    """Files, the quickest first: pytest stops at the first test that fails."""
    only: tuple[str, ...] = ()
    """The top-level names that are mutated; empty: the whole module."""


MODULES = {
    "order": Module(
        "gpt1_ds/data/order.py", ("tests/data/test_order_pinned.py", "tests/data/test_order.py")
    ),
    "steps": Module(
        "gpt1_ds/data/batches.py",
        ("tests/data/test_order_pinned.py", "tests/data/test_batches.py"),
        ("BatchSizes", "total_steps"),
    ),
    "manifest": Module(
        "gpt1_ds/data/manifest.py",
        ("tests/data/test_shards_pinned.py", "tests/data/test_manifest.py"),
    ),
    "token_stream": Module(
        "gpt1_ds/data/token_stream.py",
        ("tests/data/test_shards_pinned.py", "tests/data/test_manifest.py"),
    ),
    "shard_writer": Module(
        "gpt1_ds/data/shard_writer.py",
        ("tests/data/test_shards_pinned.py", "tests/data/test_manifest.py"),
    ),
    "dropout": Module(
        "gpt1_ds/model/kernels.py",
        ("tests/model/test_dropout.py", "tests/model/test_kernels.py"),
        ("site_keys", "dropout", "Dropout", "keep_mask", "_masked", "_pair_numbers"),
    ),
    "attention": Module(
        "gpt1_ds/model/kernels.py",
        ("tests/model/test_dropout.py", "tests/model/test_kernels.py"),
        ("causal_attention", "BlockAttention", "_query_blocks", "_minus_infinity_above"),
    ),
    "shape": Module(
        "gpt1_ds/model/gpt.py", ("tests/model/test_gpt_config.py",), ("VOCAB_MULTIPLE", "GPTConfig")
    ),
    "perplexity": Module(
        "gpt1_ds/model/perplexity.py",
        ("tests/model/test_perplexity_pinned.py", "tests/model/test_perplexity.py"),
    ),
    "sampling": Module("gpt1_ds/model/sampling.py", ("tests/model/test_sampling.py",)),
    "task": Module(
        "gpt1_ds/tasks/base.py", ("tests/tasks/test_tasks_pinned.py", "tests/tasks/test_tasks.py")
    ),
    "examples": Module(
        "gpt1_ds/tasks/examples.py",
        ("tests/tasks/test_tasks_pinned.py", "tests/tasks/test_batches_pinned.py"),
    ),
    "similarity": Module(
        "gpt1_ds/tasks/similarity.py",
        ("tests/tasks/test_tasks_pinned.py", "tests/tasks/test_tasks.py"),
    ),
    "own_data": Module("gpt1_ds/tasks/own_data.py", ("tests/tasks/test_tasks_pinned.py",)),
    "tables": Module(
        "gpt1_ds/tasks/tables.py", ("tests/tasks/test_tables.py", "tests/tasks/test_tasks.py")
    ),
    "batches": Module(
        "gpt1_ds/tasks/batches.py",
        ("tests/tasks/test_batches_pinned.py", "tests/tasks/test_batches.py"),
    ),
    "scores": Module(
        "gpt1_ds/tasks/scores.py",
        ("tests/tasks/test_scores_pinned.py", "tests/tasks/test_scores.py"),
    ),
    "figures": Module("gpt1_ds/reports/figures.py", ("tests/reports/test_figures.py",)),
    "losses": Module("gpt1_ds/runs/losses.py", ("tests/runs/test_losses_pinned.py",)),
    "memory": Module("gpt1_ds/engine/memory.py", ("tests/engine/test_memory.py",)),
    "optimizer": Module(
        "gpt1_ds/engine/optimizer.py",
        ("tests/engine/test_optimizer_pinned.py", "tests/engine/test_optimizer.py"),
    ),
    "internals": Module(
        "gpt1_ds/engine/internals.py",
        ("tests/engine/test_optimizer_pinned.py",),
        ("muon_for_blocks_alone",),
    ),
    "sections": Module(
        "gpt1_ds/settings/sections.py",
        ("tests/settings/test_loading_pinned.py", "tests/settings/test_loading.py"),
    ),
    "loading": Module(
        "gpt1_ds/settings/loading.py",
        ("tests/settings/test_loading_pinned.py", "tests/settings/test_loading.py"),
    ),
    "deepspeed_json": Module(
        "gpt1_ds/settings/deepspeed_json.py",
        ("tests/settings/test_deepspeed_json_pinned.py", "tests/settings/test_deepspeed_json.py"),
    ),
    "errors": Module("gpt1_ds/base/errors.py", ("tests/base/test_errors.py",)),
    "cleaning": Module(
        "data_prep/reading/cleaning.py",
        (
            "tests/data_prep/reading/test_cleaning_pinned.py",
            "tests/data_prep/reading/test_cleaning.py",
        ),
    ),
    "duplicates": Module(
        "data_prep/building/duplicates.py",
        ("tests/data_prep/building/test_duplicates_pinned.py",),
    ),
    "parts": Module("data_prep/building/parts.py", ("tests/data_prep/building/test_layout.py",)),
    "survivors": Module(
        "data_prep/building/survivors.py", ("tests/data_prep/building/test_survivors.py",)
    ),
    "layout": Module("data_prep/building/layout.py", ("tests/data_prep/building/test_layout.py",)),
}


@dataclass(frozen=True)
class Equivalent:
    """Mutations of the expression `before` that change nothing that a user or a caller sees."""

    module: str
    before: str
    reason: str
    after: str | None = None
    """Only this mutation of it; None: all of them."""


RAMP_END = "at the end of the ramp both ways of counting give the same step"
ONE_BIT = "sizes of 1 and 2 have halves of one bit in any case"
MORE_DRAWS = "more numbers are drawn than needed, and the first ones are the same"
ONE_TYPE = "all values of a target have the same type"
ONE_DIMENSION = "the first dimension is the last one"
ONE_ELEMENT = "a list of one element"
ONE_QUERY = "one query sees all keys: its mask is all true"
AT_LEAST_1 = "the share of a rank is at least 1, and so is the common divisor"
ADVICE = "advice to the operating system: how far it reads ahead"

EQUIVALENT: tuple[Equivalent, ...] = (
    Equivalent(
        "order",
        "min((count for count in np.diff(self.bounds) if count), default=1)",
        "the default is taken only if no corpus has a window, and then there is no order",
    ),
    Equivalent(
        "order",
        "slot_N * whole",
        "`whole` is 0 or 1, and the result of NumPy's slot // 0 is 0",
        "slot_N // whole",
    ),
    Equivalent("order", "max(size - 1, 1)", ONE_BIT, "max(size - 1, 0)"),
    Equivalent("order", "max(size - 1, 1)", ONE_BIT, "max(size - 1, 2)"),
    Equivalent("steps", "rest < 0", RAMP_END, "rest <= 0"),
    Equivalent("steps", "rest < 0", RAMP_END, "rest < 1"),
    Equivalent("steps", "rest < 0", RAMP_END, "rest < -1"),
    Equivalent("token_stream", "self._reads = 0", ADVICE),
    Equivalent("token_stream", "self._reads += 1", ADVICE),
    Equivalent("token_stream", "self._reads == 2", ADVICE),
    Equivalent("dropout", "(elements + 1) // 2", MORE_DRAWS, "(elements + 1) // 1"),
    Equivalent("dropout", "elements + 1", MORE_DRAWS, "elements + 2"),
    Equivalent(
        "dropout",
        "draws_BE.neg_().add_(round(p * 32768) - 1).bitwise_right_shift_(15)",
        "a shift of a 16-bit number by 16 leaves its sign too",
        "draws_BE.neg_().add_(round(p * 32768) - 1).bitwise_right_shift_(16)",
    ),
    Equivalent("attention", "p > 0.0", "with p = 0 nothing is dropped either way", "p >= 0.0"),
    Equivalent("attention", "T > 1", ONE_QUERY, "T >= 1"),
    Equivalent("attention", "T > 1", ONE_QUERY, "T > 0"),
    Equivalent(
        "perplexity",
        "model: GPT, documents: Sequence[np.ndarray], stride: int, name: str, "
        "batch_tokens: int=8192",
        "no result depends on how many windows are read at a time",
    ),
    Equivalent("sampling", "BATCH_SEQUENCES = 32", "no continuation depends on the others"),
    Equivalent(
        "sampling",
        "np.random.SeedSequence((seed, index)).generate_state(1)",
        "the first word does not depend on the number of words",
        "np.random.SeedSequence((seed, index)).generate_state(2)",
    ),
    Equivalent(
        "sampling",
        "np.random.SeedSequence((seed, index)).generate_state(1)[0]",
        ONE_ELEMENT,
        "np.random.SeedSequence((seed, index)).generate_state(1)[-1]",
    ),
    Equivalent(
        "sampling",
        "((values_K - values_K[0]) / self.temperature).softmax(-1)",
        ONE_DIMENSION,
        "((values_K - values_K[0]) / self.temperature).softmax(-0)",
    ),
    Equivalent("sampling", "weights_K.cumsum(-1)", ONE_DIMENSION, "weights_K.cumsum(-0)"),
    Equivalent("task", "[0] * len(lengths)", "each value is written before it is read"),
    Equivalent("examples", "self.target[0]", ONE_TYPE, "self.target[-1]"),
    Equivalent("similarity", "logits[0]", ONE_ELEMENT, "logits[-1]"),
    Equivalent("tables", "first[0]", ONE_ELEMENT, "first[-1]"),
    Equivalent(
        "batches",
        "examples[0]",
        "all examples of a task have the same number of sequences",
        "examples[-1]",
    ),
    Equivalent("scores", "gold[0]", ONE_TYPE, "gold[-1]"),
    Equivalent("scores", "train_gold[0]", ONE_TYPE, "train_gold[-1]"),
    Equivalent(
        "scores",
        "Counter(labels).most_common(1)[0]",
        ONE_ELEMENT,
        "Counter(labels).most_common(1)[-1]",
    ),
    Equivalent(
        "scores",
        "Counter(labels).most_common(1)",
        "the first is taken",
        "Counter(labels).most_common(2)",
    ),
    Equivalent(
        "batches",
        "n_wanted >= n_examples",
        "all examples in file order either way",
        "n_wanted > n_examples",
    ),
    Equivalent(
        "loading",
        "train.batch_start or 0",
        "a run without a first batch is refused either way",
        "train.batch_start or -1",
    ),
    Equivalent("loading", "arguments[0]", "the type of a list has one argument", "arguments[-1]"),
    Equivalent(
        "deepspeed_json",
        "math.gcd(share, smallest_share) or 1",
        AT_LEAST_1,
        "math.gcd(share, smallest_share) or 0",
    ),
    Equivalent(
        "deepspeed_json",
        "math.gcd(share, smallest_share) or 1",
        AT_LEAST_1,
        "math.gcd(share, smallest_share) or 2",
    ),
    Equivalent("errors", "close[0]", ONE_ELEMENT, "close[-1]"),
    Equivalent(
        "errors",
        "difflib.get_close_matches(word, choices, n=1)",
        "the first match is the best one of any number",
        "difflib.get_close_matches(word, choices, n=2)",
    ),
    Equivalent("duplicates", "1 << 21", "no result depends on the size of a bucket"),
    Equivalent(
        "parts",
        "kept.from_S[s] - offset >= last",
        "a stretch that begins at `last` gives no tokens",
        "kept.from_S[s] - offset > last",
    ),
    Equivalent("layout", "1 << 64", "any number above all keys", "1 << 65"),
    Equivalent("layout", "1 << 64", "any number above all keys", "2 << 64"),
    Equivalent("layout", "(1 << 64) - 1", "one document in 2^64 has such a key", "(1 << 64) - 2"),
)
