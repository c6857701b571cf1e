"""What is measured and checked, in the order of its value: the run may end at any row."""

from typing import NamedTuple

from benchmarks.on_gpu.running import Row

WORK = "benchmarks.on_gpu"
QUICK_SECONDS, COMPILING_SECONDS = 60.0, 120.0
COMPILED_WINDOWS = (8, 64)
"""Ways that are compiled for each micro-batch anew are timed with these alone."""
GRAPH_WINDOWS = (4, 8)
LAST_WINDOWS = 128
"""The first case whose logits are more than 2^31 numbers."""


class Options(NamedTuple):
    """What the command line asks for."""

    layers: int = 12
    windows: tuple[int, ...] = (8, 64, 4, 32)
    steps: int = 20
    """Steps of each of the three timings."""
    loop_steps: int = 60
    width: int = 768
    vocab_size: int = 40_478
    keep: str | None = None
    """Where the trace and the table of kernels go, without their ending."""

    def size(self, windows: int) -> list[int]:
        """The arguments of `train_step.Size`."""
        return [self.layers, windows, self.width, self.vocab_size]


def in_order(options: Options) -> list[Row]:
    """All rows."""
    compiled = [windows for windows in options.windows if windows in COMPILED_WINDOWS]
    compiled = compiled or list(options.windows[:1])
    graphs = [windows for windows in options.windows if windows in GRAPH_WINDOWS]
    large = options.windows[1] if len(options.windows) > 1 else options.windows[0]
    few = [options.windows[0], *options.windows[1:2]]
    rows = [
        *_arithmetic(),
        *_speed("gpt1_ds", options, list(options.windows)),
        _loop(options, large, "", options.keep),
        *_speed("torch modules, compiled", options, compiled),
        *_speed("transformers, plain loop", options, few),
        *_speed("nanoGPT compiled", options, compiled),
        *_speed("gpt1_ds, compiled", options, compiled),
        *_exactness(),
        _loop(options, options.windows[0], "", None),
        _loop(options, large, "train.compile=true", None),
        *_speed("gpt1_ds, CUDA graphs", options, graphs or list(options.windows[:1])),
        *_speed("gpt1_ds, deterministic", options, [large]),
        *_speed("our model, plain loop", options, few),
        *_speed("torch modules, plain loop", options, few),
        *_speed("transformers, DeepSpeed ZeRO-1", options, few),
    ]
    for way in ("ZeRO-2", "ZeRO-2 fp16", "ZeRO-2 offload", "ZeRO-3"):
        rows += _speed(f"gpt1_ds {way}", options, [large])
    rows += _speed("gpt1_ds, compiled, CUDA graphs", options, graphs or list(options.windows[:1]))
    if large >= max(COMPILED_WINDOWS):
        rows += _speed("gpt1_ds", options, [LAST_WINDOWS], "last")
    return rows


def _arithmetic() -> list[Row]:
    checks = {
        "device": "device",
        "measured peak": "peaks",
        "attention kernel in training": "attention_kernel",
        "float32 losses": "float32_losses",
        "bf16 loss and gradients": "bf16_gradients",
        "dropout of states": "residual_dropout",
        "dropout of attention": "attention_dropout",
        "head and loss": "head_and_loss",
    }
    return [
        Row(name, "numerics", f"{WORK}.numerics:{function}", {}, QUICK_SECONDS)
        for name, function in checks.items()
    ]


def _exactness() -> list[Row]:
    training, ranks = f"{WORK}.training", f"{WORK}.ranks"
    resumed, equal = f"{training}:resume_exactly", f"{training}:equal_with"
    return [
        Row("compiled blocks equal", "training", equal, {"option": "compile"}, COMPILING_SECONDS),
        Row("resume, train.deterministic", "resume", resumed, {"deterministic": True}, 60.0),
        Row("resume", "training", resumed, {"deterministic": False}, QUICK_SECONDS),
        _reduction("reduction, ZeRO-2", 2, False),
        _reduction("reduction, ZeRO-1", 1, False),
        _reduction("reduction, ZeRO-2, compiled blocks", 2, True),
        Row("CUDA graphs equal", "training", equal, {"option": "cuda_graphs"}, QUICK_SECONDS),
        Row("pinned offload", "training", f"{training}:pinned_offload", {}, QUICK_SECONDS),
        Row("device of DeepSpeed", "device", f"{ranks}:chosen_device", {}, QUICK_SECONDS),
        Row("hung peer", "peer", f"{ranks}:hung_peer", {}, 2 * QUICK_SECONDS),
    ]


def _reduction(name: str, stage: int, compiled: bool) -> Row:
    arguments = {"stage": stage, "compiled": compiled}
    work = f"{WORK}.training:reduce_beside"
    return Row(name, "reduction", work, arguments, COMPILING_SECONDS)


def _speed(way: str, options: Options, windows: list[int], process: str = "") -> list[Row]:
    return [
        Row(
            f"{way}, {count} windows",
            f"speed of {way} {process}",
            f"{WORK}.speed:measure",
            {"way": way, "size": options.size(count), "steps": options.steps},
            COMPILING_SECONDS,
        )
        for count in windows
    ]


def _loop(options: Options, windows: int, option: str, keep: str | None) -> Row:
    arguments = {
        "size": options.size(windows),
        "steps": options.loop_steps,
        "options": [option] if option else [],
        "keep": keep,
    }
    name = f"train.py, {windows} windows" + (f", {option}" if option else "")
    return Row(name, f"loop {name}", f"{WORK}.loop:run", arguments, COMPILING_SECONDS)
