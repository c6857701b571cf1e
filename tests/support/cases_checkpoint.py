"""Functions that ranks of the pool run for tests of checkpoints."""

import io
import os
import resource
import shutil
import signal
import socket
import threading
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from gpt1_ds import train
from gpt1_ds.base.errors import StopRequested
from gpt1_ds.checkpoints import agreeing
from gpt1_ds.checkpoints.by_parameter import WholeWeights, place_weights
from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes
from gpt1_ds.checkpoints.folder import checkpoint_folders, find_faults, read_checkpoint_manifest
from gpt1_ds.checkpoints.loading import load_weights, resume
from gpt1_ds.checkpoints.saved_parameters import SavedParameters
from gpt1_ds.checkpoints.saving import SaveError, Saves, save_checkpoint
from gpt1_ds.checkpoints.state import FileSeal
from gpt1_ds.checkpoints.writing import HashedFile
from gpt1_ds.data.order import Cursor
from gpt1_ds.distributed import collectives
from gpt1_ds.runs import directory
from gpt1_ds.settings.sections import CheckpointConfig
from tests.support.cases_engine import Trainer

NO_DROPOUT = ["model.embd_pdrop=0", "model.attn_pdrop=0", "model.resid_pdrop=0"]


def read(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every parameter's weight, moments and step, from the files in `folder`."""
    allow_known_classes()
    saved = SavedParameters(folder, read_checkpoint_manifest(folder))
    return {name: {"weight": weight, **saved.state(name)} for name, weight in saved.weights()}


def same(ours: dict, theirs: dict) -> bool:
    """Whether names, keys and all bits of the tensors are equal."""
    if ours.keys() != theirs.keys():
        return False
    for name, state in ours.items():
        if state.keys() != theirs[name].keys():
            return False
        for key, value in state.items():
            if not torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name][key])):
                return False
    return True


def save_layout(
    ds_path: str, shards: str, folder: str, steps: int, more: int, *overrides: str
) -> list[float]:
    """Train and save; returns the losses of the next `more` steps."""
    trainer = Trainer(ds_path, shards, [*NO_DROPOUT, *overrides])
    trainer.run(0, steps)
    state = replace(trainer.state(steps), cursor=Cursor(0, 8 * steps))
    save_checkpoint(trainer.engine, Path(folder), steps, state, CheckpointConfig(keep=2))
    losses = trainer.run(steps, steps + more)
    trainer.close()
    return losses


def resume_layout(
    ds_path: str, shards: str, folder: str, out: str, more: int, *overrides: str
) -> tuple[bool, list[float], dict, str]:
    """Resume the checkpoint of another layout.

    Returns whether an immediate save has the same bits, the losses of `more` steps, the state and
    the counters, and the output of rank 0.
    """
    trainer = Trainer(ds_path, shards, [*NO_DROPOUT, *overrides], seed=9)
    with redirect_stdout(io.StringIO()) as said:
        state = resume(trainer.engine, Path(folder))
    step = state.step
    save_checkpoint(trainer.engine, Path(out), step, state, CheckpointConfig(keep=2))
    exact = True
    if collectives.is_main():
        exact = same(
            *(read(Path(run) / "checkpoints" / f"step-{step:08d}") for run in (folder, out))
        )
    losses = trainer.run(step, step + more)
    counters = {
        name: getattr(trainer.engine, name)
        for name in ("global_steps", "global_samples", "skipped_steps")
    }
    trainer.close()
    return (
        exact,
        losses,
        {**state.to_json(), **counters},
        collectives.gather_json(said.getvalue())[0],
    )


def committed(folder: str) -> list[str]:
    """The valid checkpoints, newest first."""
    root = Path(folder) / "checkpoints"
    return [path.name for path in checkpoint_folders(root) if not find_faults(path)]


def save(trainer: Trainer, folder: str, step: int, **options) -> dict | None:
    kept, state = CheckpointConfig(keep=2), trainer.state(step)
    return save_checkpoint(trainer.engine, Path(folder), step, state, kept, **options)


def slow_peer(ds_path: str, shards: str, folder: str) -> tuple[float, dict[str, float]]:
    """Rank 1 takes 3 s to write its files.

    Returns the time when it had written them, and the times when rank 0 first saw each sign of a
    commit.
    """
    trainer = Trainer(ds_path, shards, [])
    trainer.run(0, 1)
    write, seen, over = trainer.engine.checkpoint_engine.save, {}, threading.Event()

    def watch() -> None:
        ended = False
        while not ended:
            ended = over.is_set()  # and once more after the save
            for _, folders, files in os.walk(folder):  # passes over what is renamed meanwhile
                for name in {"MANIFEST.json", "step-00000001", "latest"}.intersection(
                    folders + files
                ):
                    seen.setdefault(name, time.time())
            time.sleep(0.002)

    def slow(state_dict, path) -> None:
        time.sleep(3.0)
        write(state_dict, path)

    if collectives.rank() == 1:
        trainer.engine.checkpoint_engine.save = slow
    else:
        watcher = threading.Thread(target=watch)
        watcher.start()
    save(trainer, folder, 1)
    if collectives.is_main():
        over.set()
        watcher.join()
    shard = next(
        (Path(folder) / "checkpoints" / "step-00000001").glob(
            "*zero_pp_rank_1_mp_rank_00_optim_states.pt"
        )
    )
    trainer.close()
    return shard.stat().st_mtime, collectives.gather_json(seen)[0]


def behind(ds_path: str, shards: str, folder: str) -> tuple:
    """Save step 1 during steps 2 and 3; rank 1 writes its last file half a second late.

    Returns the checkpoints that were committed before that, the log record of the commit, whether
    the right tensors were saved, and the losses: with the save, without it, and resumed from it.
    """
    plain = Trainer(ds_path, shards, NO_DROPOUT)
    undisturbed = plain.run(0, 1)
    save_checkpoint(
        plain.engine, Path(folder) / "plain", 1, plain.state(1), CheckpointConfig(keep=1)
    )
    undisturbed += plain.run(1, 3)
    plain.close()
    trainer, commits, may_end = Trainer(ds_path, shards, NO_DROPOUT), [], threading.Event()
    saves = Saves(
        Path(folder), CheckpointConfig(keep=2), lambda step, **facts: commits.append((step, facts))
    )
    seal, slow = HashedFile.seal, collectives.rank() == 1

    def late(file) -> FileSeal:
        assert may_end.wait(60)
        time.sleep(0.5)
        return seal(file)

    losses = trainer.run(0, 1)
    HashedFile.seal = late if slow else seal
    saves.save(trainer.engine, 1, trainer.state(1), must=False)
    for step in (1, 2):
        losses += trainer.run(step, step + 1)
        saves.poll()
    early = [
        path.name
        for path in Path(folder).rglob("*")
        if path.name in ("MANIFEST.json", "latest") and "plain" not in str(path)
    ]
    collectives.barrier()
    may_end.set()
    while saves.pending:
        saves.poll()
        time.sleep(0.01)
    HashedFile.seal = seal
    trainer.close()
    last = "checkpoints/step-00000001"
    exact = same(read(Path(folder) / last), read(Path(folder) / "plain" / last))
    again = Trainer(ds_path, shards, NO_DROPOUT, seed=9)
    resumed = again.run(resume(again.engine, Path(folder)).step, 3)
    again.close()
    return early, commits, exact, losses, undisturbed, resumed


def no_room(ds_path: str, shards: str, folder: str) -> tuple[list[bool], list[str]]:
    """Two saves, the second without free memory: whether each is pending, and the commits."""
    trainer, room, pending = Trainer(ds_path, shards, []), agreeing.memory_left, []
    saves = Saves(Path(folder), CheckpointConfig(keep=2), lambda step, **facts: None)
    for step, left in ((1, room), (2, lambda: 1000.0)):
        trainer.run(step - 1, step)
        agreeing.memory_left = left
        saves.save(trainer.engine, step, trainer.state(step), must=False)
        pending.append(saves.pending is not None)
    agreeing.memory_left = room
    trainer.close()
    return pending, committed(folder)


def attempt(action) -> str:
    """The error line that `action` raises on this rank."""
    try:
        action()
    except SaveError as error:
        return str(error)
    return ""


def limited_save(ds_path: str, shards: str, folder: str, limited: int) -> tuple:
    """Save after steps 2, 3 and 4. At step 3, rank `limited` cannot write files above 2 kB."""
    plain = Trainer(ds_path, shards, NO_DROPOUT)
    undisturbed = plain.run(0, 4)
    plain.close()
    trainer = Trainer(ds_path, shards, NO_DROPOUT)
    losses = trainer.run(0, 2)
    save(trainer, folder, 2)
    losses += trainer.run(2, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if collectives.rank() == limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    started = time.monotonic()
    skipped = save(trainer, folder, 3, must=False)
    fault = attempt(lambda: save(trainer, folder, 3))
    seconds = time.monotonic() - started
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = committed(folder)
    losses += trainer.run(3, 4)
    saved = save(trainer, folder, 4)
    trainer.close()
    return skipped, fault, seconds, kept, saved, losses, undisturbed


def full_disk(ds_path: str, shards: str, disk: str) -> tuple[str, str, list[str]]:
    """The errors of two saves: one does not fit on the disk, one fills the disk."""
    trainer = Trainer(ds_path, shards, [])
    trainer.run(0, 1)
    save(trainer, disk, 1)
    filler = Path(disk) / f"filler-{collectives.rank()}"
    if collectives.is_main():
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - 40_000))
    collectives.barrier()
    before = attempt(lambda: save(trainer, disk, 2))
    filler.unlink(missing_ok=True)
    collectives.barrier()
    write = trainer.engine.checkpoint_engine.save

    def filled_up(state_dict, path) -> None:
        if collectives.is_main():
            filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - 8_000))
        write(state_dict, path)

    trainer.engine.checkpoint_engine.save = filled_up
    during = attempt(lambda: save(trainer, disk, 2))
    kept = committed(disk)
    trainer.close()
    return before, during, kept


def steps_apart(ds_path: str, shards: str, folder: str) -> None:
    trainer = Trainer(ds_path, shards, [])
    try:
        save(trainer, folder, 1 + collectives.rank())
    finally:
        trainer.close()


def resume_and_save(ds_path: str, shards: str, folder: str) -> list[int]:
    """The step of the resume, and the newest valid step after one more step and save."""
    trainer = Trainer(ds_path, shards, [], seed=5)
    step = resume(trainer.engine, Path(folder)).step
    trainer.run(step, step + 1)
    save(trainer, folder, step + 1)
    trainer.close()
    return [step, int(committed(folder)[0][5:])]


def save_many(
    ds_path: str, shards: str, folder: str, steps: int, keep: int, keep_every: int
) -> None:
    trainer = Trainer(ds_path, shards, [])
    kept = CheckpointConfig(keep=keep, keep_every=keep_every)
    for step in range(1, steps + 1):
        save_checkpoint(trainer.engine, Path(folder), step, trainer.state(step), kept)
    trainer.close()


def signalled_save(ds_path: str, shards: str, folder: str, number: str, whom: list[int]) -> tuple:
    """Pre-train with a checkpoint every second step.

    The ranks `whom` get two signals while the first checkpoint is written.
    """
    over = threading.Event()
    code = signal.Signals[number]
    watched = Path(folder) / "stopped" / "checkpoints" / "step-00000002.tmp"

    def watch() -> None:
        while not over.is_set() and not watched.exists():
            time.sleep(0.0005)
        for _ in range(2):
            os.kill(os.getpid(), code)
            time.sleep(0.01)

    words = [
        "--deepspeed_config",
        ds_path,
        "model.preset=gpt1-tiny",
        "model.n_ctx=32",
        "train.global_batch=4",
        "train.max_steps=6",
        "checkpoint.every=2",
        "schedule.warmup_steps=2",
        "eval.batches=1",
        "log.every=1",
        f"data.shards={shards}",
        f"run.dir={folder}",
    ]
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    train.main([*words, "run.name=undisturbed"])
    if collectives.rank() in whom:
        threading.Thread(target=watch, daemon=True).start()
    try:
        exit_code, step = train.main([*words, "run.name=stopped"]) or 0, 0
    except StopRequested as error:
        exit_code, step = error.exit_code, int(committed(f"{folder}/stopped")[0][5:])
    finally:
        over.set()
        for n, handler in handlers.items():
            signal.signal(n, handler)
    valid = committed(f"{folder}/stopped")
    directory._locks.clear()  # the end of a process does the same
    collectives.barrier()
    train.main([*words, "run.name=stopped"])
    results = []
    for name in ("undisturbed", "stopped"):
        last = read(Path(folder) / name / "checkpoints" / "step-00000006")
        results.append({key: float(value["weight"].double().sum()) for key, value in last.items()})
    return exit_code, step, valid, *results


def start_from(ds_path: str, shards: str, source: str, folder: str, spoiled: int = 0) -> None:
    """Save a new engine that starts with the weights of `source`.

    If `spoiled`, rank 1 changes a weight after reading it.
    """
    trainer = Trainer(ds_path, shards, [], seed=9)
    weights = load_weights(source)[0].items()
    if spoiled and not collectives.is_main():
        weights = [(name, weight + 1 if name == "wpe" else weight) for name, weight in weights]
    try:
        place_weights(trainer.engine, WholeWeights(weights), source)
        save(trainer, folder, 1)
    finally:
        trainer.close()


def listening() -> list[str]:
    """The addresses where sockets of this rank listen, from /proc."""
    links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for row in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
            if row[3] == "0A" and row[9] in inodes:
                words = bytes.fromhex(
                    row[1].partition(":")[0]
                )  # 32-bit words, each in the machine's byte order
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.append(socket.inet_ntop(family, packed))
    return found
