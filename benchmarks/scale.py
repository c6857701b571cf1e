"""What one of many ranks does for a checkpoint, an agreement and a start; old beside new.

    python benchmarks/scale.py gather [--old PATH]
    python benchmarks/scale.py resize [--old PATH] [--stage 2] [--ranks 512] [--layers 12]
    python benchmarks/scale.py start [--old PATH] [--stage 3] [--ranks 1 2 4 64] [--layers 16]

`gather` times the collectives of a save at 8, 512 and 4,096 ranks, over torch's fake process group;
"seals" are values that all differ, which rank 0 needs for the manifest.
The fake group copies its own tensor once for each rank, in a loop; here one copy stands for the
network. `resize` makes the folder of a checkpoint of so many ranks, and loads it as one rank of
half as many: process time, files opened, times that the folder is listed. Its other ranks do not
exist, so the sum over ranks that would compare all weights is taken as right. `start` measures the
peak of resident memory of a rank from the command's imports to a built engine, beside what the
planner states for a model of that size, with buckets of 2e7 elements: real ranks, or one of 64 in
the fake group. PATH is a checkout of an earlier commit, which takes turns with this one, each in a
process of its own. About a minute each.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

if __name__ == "__main__" and "--child" not in sys.argv:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.distributed as dist
from torch import Tensor

from gpt1_ds.checkpoints.saving import seal_file
from gpt1_ds.checkpoints.state import CheckpointManifest, CheckpointState, Layout, digest
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.environment import free_port
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
WORLDS = (8, 512, 4096)
RANKS, ROUNDS, CALLS, BUCKET = 512, 3, 20, 20_000_000
MOST_REAL = 16
SEAL = {"rng-rank-00000.safetensors": [5_098, "a" * 64]}


def join(rank: int, ranks: int) -> None:
    """Make this process one of `ranks` ranks that do not exist; collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    place = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": ranks, "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # DeepSpeed asks for it
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    torch.set_num_threads(1)


# --- gather ---


def same_of_all(gathered: Tensor, own: Tensor) -> None:
    gathered.view(-1, own.numel()).copy_(own.expand(gathered.numel() // own.numel(), -1))


def another_of_the_last(gathered: Tensor, own: Tensor) -> None:
    same_of_all(gathered, own)
    if own.dtype == torch.uint8:  # a digit of the hash
        gathered[-own.numel() + len(json.dumps(SEAL)) - 10] = ord("b")


def time_gather(ranks: int) -> dict[str, float]:
    """Milliseconds of a call, by what it sends."""
    join(0, ranks)
    found = {}
    dist.all_gather_into_tensor = same_of_all
    found["no fault"] = milliseconds(lambda: collectives.gather_json(None))
    dist.all_gather_into_tensor = another_of_the_last
    gather_seals = getattr(collectives, "gather_json_on_main", collectives.gather_json)
    assert gather_seals(SEAL)[-1] != SEAL
    found["seals, on rank 0"] = milliseconds(lambda: gather_seals(SEAL))
    if hasattr(collectives, "from_main"):
        found["of rank 0"] = milliseconds(lambda: collectives.from_main(None))
        found["numbers"] = milliseconds(lambda: collectives.gather_numbers([1, 2, 3, 4, 5, 6]))
    dist.destroy_process_group()
    join(ranks - 1, ranks)
    found["seals, another"] = milliseconds(lambda: gather_seals(SEAL))
    return found


def milliseconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(CALLS):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return 1e3 * statistics.median(times)


# --- resize ---


def shape_with(layers: int) -> GPTConfig:
    return GPTConfig(40_478, layers)


def parameters_of(shape: GPTConfig) -> list[dict[str, torch.Size]]:
    """The shapes of the two groups, as DeepSpeed notes them."""
    with torch.device("meta"):
        module = GPT(shape)
    groups: list[dict[str, torch.Size]] = [{}, {}]
    for name, parameter in module.named_parameters():
        groups[parameter.ndim < 2][name] = parameter.shape
    return groups


def sizes_of(groups: list[dict[str, torch.Size]], stage: int, ranks: int) -> list[int]:
    """Elements of each flat tensor of a rank."""
    if stage == 3:
        shapes = [shape for group in groups for shape in group.values()]
        return [sum(-(-shape.numel() // ranks) for shape in shapes)]
    totals = [sum(shape.numel() for shape in group.values()) for group in groups]
    return [2 * -(-total // (2 * ranks)) for total in totals]


def write_checkpoint(folder: Path, shape: GPTConfig, stage: int, ranks: int) -> None:
    """A committed checkpoint of step 1, with random weights and moments."""
    folder.mkdir(parents=True)
    groups = parameters_of(shape)
    counters = dict.fromkeys(("global_steps", "global_samples", "skipped_steps"), 1)
    prefix = "zero_pp_rank_0_" if stage == 3 else ""
    torch.save({"param_shapes": groups, **counters}, folder / f"{prefix}mp_rank_00_model_states.pt")
    sizes = sizes_of(groups, stage, ranks)
    kept = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    states = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
    for rank in range(ranks):
        flats = [torch.randn(size) for size in sizes]
        state = {}
        for part, flat in enumerate(flats):
            moments = {"exp_avg": flat * 0.1, "exp_avg_sq": flat * flat}
            state[part] = {"step": torch.tensor(1.0), **moments}
        saved = {kept: flats, states: {"state": state, "param_groups": [{}]}}
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": saved}, folder / name)
    state = CheckpointState(step=1, model=vars(shape), tokenizer_sha256="ab" * 32).to_json()
    (folder / "state.json").write_text(json.dumps(state))
    files = {path.name: seal_file(path) for path in folder.iterdir()}
    places = Layout(ranks, stage, "bf16", [0] * ranks)
    manifest = CheckpointManifest(1, places, digest(state), files)
    (folder / "MANIFEST.json").write_text(json.dumps(manifest.to_json()))


class Equal:
    """A sum over ranks that agrees with everything: these ranks do not exist."""

    def item(self) -> "Equal":
        return self

    def unbind(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(()), torch.zeros(())

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None


@contextmanager
def opened(folder: Path) -> Iterator[list[str]]:
    """The files of `folder` that the block opens, and the folder each time that it lists it."""
    names: list[str] = []
    watching = True

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "os.scandir", "os.listdir"):
            if str(arguments[0]).startswith(str(folder)):
                names.append(f"{event} {arguments[0]}")

    sys.addaudithook(note)
    yield names
    watching = False


def time_resize(folder: Path, stage: int, ranks: int, layers: int) -> dict[str, float]:
    from gpt1_ds.checkpoints.loading import load_checkpoint

    join(ranks // 2, ranks)
    import_deepspeed()
    config = load(PretrainConfig, None, [f"train.global_batch={ranks}", "train.micro_batch=1"])
    ds = resolve(ROOT / "ds_configs" / f"zero{stage}_bf16.json", config, ranks)
    engine = initialize(GPT(shape_with(layers)), config, ds)
    collectives.all_sum = lambda tensor: Equal()
    began = time.process_time()
    with opened(folder) as names:
        load_checkpoint(engine, folder)
    seconds = time.process_time() - began
    pieces = {name for name in names if name.startswith("open ") and name.endswith("states.pt")}
    return {
        "seconds": seconds,
        "files": len(pieces),
        "opens": sum(name.startswith("open ") for name in names),
        "lists": sum(not name.startswith("open ") for name in names),
    }


# --- start ---


def deepspeed_json_of(stage: int) -> Path:
    """The shipped JSON, with small buckets: the others would hide the model."""
    ds = json.loads((ROOT / "ds_configs" / f"zero{stage}_bf16.json").read_text())
    ds["zero_optimization"]["reduce_bucket_size"] = BUCKET
    path = Path(tempfile.mkdtemp()) / "ds.json"
    path.write_text(json.dumps(ds))
    return path


def memory(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def way_to_make() -> Callable[[], Any]:
    """The context in which a version makes a model that it trains."""
    try:
        from gpt1_ds.engine.building import without_memory
    except ImportError:
        return nullcontext
    return without_memory


def measure_start(stage: int, layers: int, alone: int, whole: bool) -> dict[str, float]:
    """Peak bytes of this rank from here to a built engine, and what the planner states.

    With `alone`, it is one of so many ranks, and the others do not exist. With `whole`, or in a
    version that has no other way, the module is built whole before.
    """
    from gpt1_ds.distributed import rendezvous

    if alone:
        join(0, alone)
    else:
        rendezvous.join_process_group(300.0)
    ranks = collectives.world_size()
    import_deepspeed()
    options = [f"train.global_batch={ranks}", "train.micro_batch=1"]
    config = load(PretrainConfig, None, options)
    ds = resolve(deepspeed_json_of(stage), config, ranks)
    shape = GPTConfig(8_000, layers, 16, 1_024)
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = memory("VmRSS")
    torch.manual_seed(1)
    made = nullcontext if whole else way_to_make()
    with made():
        module = GPT(shape)
    initialize(module, config, ds)
    peak = memory("VmHWM") - before
    collectives.barrier()
    return {"parameters": shape.parameters, "peak": peak, "stated": stated_bytes(shape, ds, ranks)}


def stated_bytes(shape: GPTConfig, ds: dict[str, object], ranks: int) -> float:
    """What the planner states for a rank's states in bf16; NaN in versions with other formulas."""
    from gpt1_ds.engine import memory

    if not hasattr(memory, "model_states"):
        return math.nan
    return memory.model_states(shape, ds, "bf16", ranks).total


def start_on(code: Path, ranks: int, stage: int, layers: int, *words: str) -> dict[str, float]:
    """The largest figures of so many ranks; more than `MOST_REAL` of them are not real."""
    if ranks > MOST_REAL:
        return child(code, "start", stage, layers, ranks, *words)
    port = str(free_port())
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(ranks):
        own = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(start_child(code, own, "start", stage, layers, 0, *words))
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return {name: max(figures[name] for figures in found) for name in found[0]}


# --- Both versions in turns ---


def start_child(code: Path, place: dict[str, str], *words: object) -> subprocess.Popen[str]:
    """This script as `--child`, with the packages of `code`."""
    command = [sys.executable, __file__, "--child", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(code), "PYTHONWARNINGS": "ignore"}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | place
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def child(code: Path, *words: object) -> dict[str, float]:
    """The figures that it prints."""
    found: dict[str, float] = json.loads(
        start_child(code, {}, *words).communicate()[0].splitlines()[-1]
    )
    return found


def in_turns(versions: dict[str, Path], *words: object) -> dict[str, dict[str, float]]:
    """The median of each figure of each version."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for _ in range(ROUNDS):
        for name, code in versions.items():
            runs[name].append(child(code, *words))
    return {
        name: {key: statistics.median(run[key] for run in of_version) for key in of_version[0]}
        for name, of_version in runs.items()
    }


def show_gather(versions: dict[str, Path]) -> None:
    first: dict[tuple[str, str], float] = {}
    for ranks in WORLDS:
        for version, figures in in_turns(versions, "gather", ranks).items():
            for name, value in figures.items():
                ratio = value / first.setdefault((version, name), value)
                row = f"{ranks:5} ranks  {version}  {name:16} {value:8.3f} ms"
                print(f"{row}  {ratio:6.2f}x of {WORLDS[0]} ranks", flush=True)


def show_resize(versions: dict[str, Path], args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        folder = Path(root) / "checkpoints" / "step-00000001"
        ranks = args.ranks[0] if args.ranks else RANKS
        write_checkpoint(folder, shape_with(args.layers), args.stage, ranks)
        words = "resize", folder, args.stage, ranks // 2, args.layers
        for version, figures in in_turns(versions, *words).items():
            shown = "  ".join(f"{name} {value:,.2f}" for name, value in figures.items())
            print(f"ZeRO-{args.stage}, {ranks} to {ranks // 2} ranks  {version}  {shown}")


def show_start(versions: dict[str, Path], args: argparse.Namespace) -> None:
    for ranks in args.ranks or (1, 2, 4, 64):
        for version, code in versions.items():
            figures = start_on(code, ranks, args.stage, args.layers)
            per = {name: figures[name] / figures["parameters"] for name in ("peak", "stated")}
            print(
                f"ZeRO-{args.stage}, {ranks} ranks, {figures['parameters'] / 1e6:.0f}M parameters  "
                f"{version}  peak of the start {figures['peak'] / 1e9:.2f} GB ({per['peak']:.1f} "
                f"bytes a parameter), stated {figures['stated'] / 1e9:.2f} ({per['stated']:.1f})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("gather", "resize", "start"))
    parser.add_argument("--old", type=Path, metavar="PATH", help="checkout of an earlier commit")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3))
    parser.add_argument("--ranks", type=int, nargs="+")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint")
    args = parser.parse_args()
    versions = {"old": args.old.resolve()} if args.old else {}
    versions["new"] = ROOT
    usual = {"gather": (0, 0), "resize": (2, 12), "start": (3, 16)}[args.what]
    args.stage, args.layers = args.stage or usual[0], args.layers or usual[1]
    if args.what == "gather":
        show_gather(versions)
    elif args.what == "resize":
        show_resize(versions, args)
    else:
        show_start(versions, args)


def main_of_child(what: str, *words: str) -> None:
    if what == "gather":
        figures = time_gather(int(words[0]))
    elif what == "start":
        figures = measure_start(*map(int, words[:3]), "whole" in words)
    else:
        figures = time_resize(Path(words[0]), *map(int, words[1:]))
    print(json.dumps(figures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        main_of_child(*sys.argv[2:])
    else:
        main()
