"""The start of a training run, the same for both commands: settings, folder, engine, resume, log.

`read_settings`, then the command reads its data, claims the folder and builds its module, then
`start_engine`, then a `Run`.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import nn

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.checkpoints.by_parameter import Source, place_weights
from gpt1_ds.checkpoints.folder import checkpoint_folders, has_checkpoint
from gpt1_ds.checkpoints.loading import open_weights, resume
from gpt1_ds.checkpoints.mirror import SETTING, Mirror
from gpt1_ds.checkpoints.saving import Saves, StallError
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.manifest import Manifest
from gpt1_ds.data.order import mix
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed import collectives, heartbeat
from gpt1_ds.distributed.console import progress, say
from gpt1_ds.distributed.environment import rank_environment
from gpt1_ds.distributed.preemption import StopFlag
from gpt1_ds.distributed.rendezvous import Meeting
from gpt1_ds.engine.determinism import choose_algorithms
from gpt1_ds.engine.mechanics import default_mechanics
from gpt1_ds.engine.start import initialize, require_async_io
from gpt1_ds.engine.timing import Item, StepTimer, Throughput
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.directory import record_settings, tell_of_holder
from gpt1_ds.runs.log import HANG_SECONDS, RunLog
from gpt1_ds.runs.remote_run import local_run
from gpt1_ds.runs.restoring import restore_from_mirror
from gpt1_ds.runs.slow_ranks import SlowRanks
from gpt1_ds.runs.start_facts import checkpoint_facts, start_facts
from gpt1_ds.runs.wall_time import CHECKPOINTS, DATA
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.command_line import arguments
from gpt1_ds.settings.fidelity import contradictions
from gpt1_ds.settings.loading import run_folder
from gpt1_ds.settings.sections import ModelConfig, PretrainConfig
from gpt1_ds.settings.shipped import ds_config_path

ConfigT = TypeVar("ConfigT", bound=PretrainConfig)
NOT_SHAPE = ("preset", "vocab_size")
"""What `ModelConfig` and `GPTConfig` do not have in common."""
USUAL: Json = {"kind": "transformer", "position_logits": False}


@dataclass
class Settings(Generic[ConfigT]):
    """What the user asked for."""

    config: ConfigT
    """What the run means: YAML and command line."""
    ds: Json
    """How DeepSpeed runs it: the resolved JSON."""
    from_scratch: bool

    def resumes(self) -> bool:
        """Whether the run goes on from checkpoints of its own.

        What it once started from may be gone by then.
        """
        return not self.from_scratch and has_checkpoint(run_folder(self.config))


class InitialWeights(NamedTuple):
    """Weights of another run that training starts from."""

    weights: Source
    origin: Path | str
    """Where they come from, for messages."""


class Started(NamedTuple):
    """What `start_engine` returns."""

    engine: Engine
    folder: Path
    facts: CheckpointState
    """What every checkpoint of this run says of model, tokenizer and data."""
    state: CheckpointState
    """Where training begins: the newest checkpoint's state, or `facts` at step 0."""


def read_settings(
    meeting: Meeting,
    config_class: type[ConfigT],
    argv: list[str],
    about: str | None,
) -> Settings[ConfigT]:
    """The settings that the command line `argv` names; `about` is the text of `--help`.

    ConfigError on all ranks if the other ranks of the `meeting` have other settings, or other code.
    """
    args, config = arguments(config_class, argv, about)
    choose_algorithms(config)
    place = rank_environment(os.environ)
    if args.deepspeed_config is None:
        name, why = default_mechanics()
        args.deepspeed_config = ds_config_path(name)
        if place.rank == 0:
            chosen = f"--deepspeed_config {name}, because {why}"
            print(chosen, file=sys.stderr, flush=True)
    ds = deepspeed_json.resolve(args.deepspeed_config, config, place.world_size)
    require_async_io(args.deepspeed_config, ds)
    if place.rank == 0:  # there is no process group yet, so `say` would print on every rank
        lines = [*deepspeed_json.warnings(args.deepspeed_config, ds, config)]
        for line in [*lines, *contradictions(config)]:
            print(line, file=sys.stderr, flush=True)
        tell_of_holder(run_folder(config))
    settings = Settings(config, ds, args.from_scratch)
    if place.world_size > 1:
        facts = start_facts(config, ds, args.from_scratch)
        meeting.compare(facts, config.distributed.timeout_seconds)
    if config.checkpoint.mirror:
        if place.rank == 0:
            restore_from_mirror(config, args.from_scratch)
        # The other ranks wait here, before any of them reads the folder of the run.
        meeting.compare({SETTING: config.checkpoint.mirror}, config.distributed.timeout_seconds)
    if place.world_size > 1:
        if config.init.checkpoint and not settings.resumes():
            meeting.facts |= checkpoint_facts(config.init.checkpoint)
    meeting.timeout_seconds = config.distributed.timeout_seconds
    return settings


def shape_of(model: ModelConfig | GPTConfig) -> Json:
    """What `ModelConfig` and `GPTConfig` have in common."""
    return {name: value for name, value in asdict(model).items() if name not in NOT_SHAPE}


def start_engine(
    settings: Settings[ConfigT],
    folder: Path,
    module: nn.Module,
    initial: InitialWeights | None,
    facts: CheckpointState,
) -> Started:
    """Build the engine, fill in the weights, resume in the claimed `folder`; all ranks call.

    `module` was made `without_memory`: the engine gives it some, and the `initial` weights in place
    of those that are drawn, where it has them.
    DataError if a checkpoint of the run does not belong to `facts`.
    """
    config = settings.config
    engine = initialize(module, config, settings.ds)
    if initial is not None:
        place_weights(engine, initial.weights, initial.origin)
    # Dropout on a GPU differs by rank; on a CPU it does not depend on this generator.
    torch.manual_seed(int(mix(config.run.seed, 4, collectives.rank()) >> 1))
    state = resume(engine, folder)
    if state is None:
        return Started(engine, folder, facts, facts)
    check_state_of_run(state, facts, folder, config.data.weights)
    return Started(engine, folder, replace(facts, unknown=state.unknown), state)


class Run(Generic[ConfigT]):
    """A training run in progress: its engine and everything that records what it does."""

    def __init__(
        self,
        settings: Settings[ConfigT],
        started: Started,
        stop: StopFlag,
        total_steps: int,
        title: str,
        facts: Mapping[str, int] | None = None,
    ):
        """`title` stands in front of the progress; `facts` go into the record of this start."""
        config, step = settings.config, started.state.step
        self.config: ConfigT = config
        self.ds = settings.ds
        self.engine, self.folder, self.facts, _ = started
        self.stop = stop
        self.total_steps = total_steps
        finished = step >= total_steps
        changed = record_settings(self.folder, config, self.ds, finished)
        self.shape = GPTConfig(**self.facts.model)
        self.precision = deepspeed_json.precision(self.ds)
        self.bar = progress(title, total_steps, "step", step, logged=True)
        self.timer = StepTimer()
        self.throughput = Throughput(self.shape.flops_per_token, self.precision)
        start = {**(facts or {}), **({"changed": changed} if changed else {})}
        # At a stop the ranks wait for each other's writes.
        longest = min(config.checkpoint.stall_seconds, config.distributed.timeout_seconds / 2)
        hang_seconds = min(HANG_SECONDS, longest)
        self.log = RunLog(self.folder, step, self.engine, start, hang_seconds)
        of_saves = replace(config.checkpoint, stall_seconds=longest)
        self.saves = Saves(self.folder, of_saves, self._log_checkpoint)
        self.not_saved = ""
        """Why the checkpoint at a stop request is not there; empty if it is."""
        self.saves.replicas.watch(self.engine)
        self.slow_ranks = SlowRanks(config.log.slow_ratio)
        if config.checkpoint.mirror and collectives.is_main():
            self._mirror_to(config.checkpoint.mirror)

    def _mirror_to(self, url: str) -> None:
        """Copy each checkpoint there, and now the newest one if an earlier start did not."""
        self.saves.mirror = Mirror(url, self.config.checkpoint.mirror_keep, self.folder)
        for newest in checkpoint_folders(self.folder / "checkpoints")[:1]:
            self.saves.mirror.add(newest)

    def _log_checkpoint(self, step: int, **saved: float) -> None:
        self.log.log(step, "checkpoint", **saved)

    def announce(self, step: int, rows: dict[str, str]) -> None:
        """The lines that a start prints: the folder, `rows`, and the steps done."""
        done = f"{step} of {self.total_steps} done"
        lines = {"run": str(self.folder), **rows, "steps": done}
        say("\n".join(f"{name:8} {text}" for name, text in lines.items()))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The time in which the loop runs.

        status.json is kept true, DeepSpeed's communication is timed, the fault of a peer becomes a
        PeerError, and a diverged run settles the checkpoint on its way.
        """
        outcome = self.log.outcome(lambda: self.engine.global_steps)
        timed = self.timer.communication()
        ended = heartbeat.last_action(lambda _: self.bar.close())
        with outcome, self.bar, ended, timed, collectives.peer_faults(), self.saves:
            yield
            self.log.wall_time.switch(CHECKPOINTS)  # old ones may still have to be deleted

    @contextmanager
    def aside(self, kind: str) -> Iterator[None]:
        """A block that is no step, such as a validation: of `kind` in the wall time."""
        with self.throughput.paused(), self.log.wall_time.part(kind):
            yield

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, one a step; the wait for each of them counts as `data`."""
        iterator = iter(self.timer.waiting(items))
        while True:
            with self.log.wall_time.part(DATA):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            self.log.keep_status(self.engine.global_steps)
            self.log.wall_time.in_step(self.engine.global_steps)
            yield item

    def poll(self) -> None:
        """Commit the pending checkpoint, if all ranks have written it."""
        with self.log.wall_time.part(CHECKPOINTS):
            self.saves.poll()

    def read_timer(self, step: int, steps: int) -> dict[str, float | str]:
        """For the line of `step`: seconds of the parts of a step, mean of the last `steps`; and the
        slowest rank at the line before. All ranks call."""
        parts = self.timer.read(max(1, steps))
        return {**parts, **self.slow_ranks.exchange(step, self.timer.own_seconds)}

    def commit(self, state: CheckpointState, must: bool, stopping: bool = False) -> None:
        """Save a checkpoint of `state.step`; `must`: at once, and a failure is an error.

        `stopping`: on request. A disk that hangs then keeps no run from its end; `kept` tells.
        """
        try:
            with self.aside(CHECKPOINTS):
                self.saves.save(self.engine, state.step, state, must)
        except StallError as error:
            if not stopping:
                raise
            self.not_saved = str(error)

    def kept(self) -> str:
        """What became of the step that a stop request has ended, for the last line."""
        if self.not_saved:
            return f"is lost: {self.not_saved}"
        return f"is committed in {self.folder}/checkpoints; the same command continues"


def check_tokenizer(config: PretrainConfig, folder: Path, manifest: Manifest) -> Tokenizer:
    """The tokenizer in `folder`, which must be the one that made the shards of `manifest`."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.sha256 != manifest.tokenizer.get("sha256"):
        raise DataError(
            f"{folder}: not the tokenizer these shards were made with; restore it or rerun "
            "build_shards"
        )
    tokenizer.check_choice(**vars(config.tokenizer))
    return tokenizer


def open_initial_weights(origin: Path | str, facts: CheckpointState) -> InitialWeights:
    """The weights of the run or checkpoint at `origin`; all ranks call."""
    weights, state = open_weights(local_run(origin))
    check_state(state, facts, origin)
    return InitialWeights(weights, origin)


def check_state(state: CheckpointState, facts: CheckpointState, source: Path | str) -> None:
    """Refuse a checkpoint whose model has other shapes, or whose tokenizer gives other ids."""
    here = _identity(facts)
    # Checkpoints do not name what has its usual value: old ones the kind, all the ones of USUAL.
    here, there = ({**USUAL, **identity} for identity in (here, _identity(state)))
    differing = [
        f"{name} {there.get(name)} there, {value} here"
        for name, value in here.items()
        if there.get(name) != value and "drop" not in name
    ]
    if differing:
        raise DataError(
            f"{source}: checkpoint of another model: {', '.join(differing)}; choose another "
            "run.name or checkpoint"
        )


def check_state_of_run(
    state: CheckpointState, facts: CheckpointState, folder: Path, weights: dict[str, float]
) -> None:
    """Refuse to go on from `state` with another model, seed or data."""
    check_state(state, facts, folder)
    check_seed(state, facts, folder)
    check_data(state, facts, folder, weights)


def _identity(state: CheckpointState) -> Json:
    return {**state.model, "tokenizer": state.tokenizer_sha256[:12]}


def check_seed(state: CheckpointState, facts: CheckpointState, folder: Path) -> None:
    """Refuse another seed: the order of the data and the dropout of the run depend on it."""
    if state.step and state.seed not in (None, facts.seed):
        raise ConfigError(
            f"{folder}: began with run.seed={state.seed}, and its data have that order; now "
            f"run.seed is {facts.seed}: give {state.seed}, another run.name, or --from-scratch"
        )


def check_data(
    state: CheckpointState, facts: CheckpointState, folder: Path, weights: dict[str, float]
) -> None:
    """Refuse other data: the cursor counts windows of those that the run began with.

    The training corpora must be the same, apart from those that `weights` leaves out.
    """
    before, now = state.data or {}, facts.data or {}
    kind = "examples" if state.task else "shards"
    if not before:
        return  # an early version did not write them
    for corpus in sorted(before.keys() | now.keys()):
        there, here = before.get(corpus, "none"), now.get(corpus, "none")
        split, _, name = corpus.partition("/")
        used = split == "train" and (not weights or weights.get(name, 0) > 0)
        both = corpus in before and corpus in now
        if there != here and (used or both):
            raise DataError(
                f"{folder}: began with other {kind} of {corpus} ({there}; now {here}); restore "
                "them, or choose another run.name"
            )
