"""`make quickstart`: trains and fine-tunes a small GPT-1 on the embedded sample text.

Each step is a command that a user could type.

    python quickstart.py

It takes about 5 minutes on 2 CPU cores and less on a GPU.

All files are in quickstart/. A second run skips the finished steps, and an interrupted training
resumes. If the steps or their configuration files have changed since quickstart/ was made, the
folder is deleted and all steps run again.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HOME = Path("quickstart")
PROMPT = "One morning"
TASKS = {"sst2": "SST-2", "snli": "SNLI"}
# With the paper's 6.25e-5, this small model learns nothing in three epochs of 2,000 examples.
FINETUNING = "optim.lr=2e-3 schedule.warmup_fraction=0.1"
PORT = "PORT"
"""Stands for a free port: another run on this machine may have taken the launcher's default."""

Step = tuple[str, str, str]
"""Title, command, and a file in quickstart/ that exists if the step is done.

This script makes the files named `done`.
"""


def steps() -> list[Step]:
    import torch  # here, so that Ctrl-C during the import ends with one line

    from gpt1_ds.engine.mechanics import default_mechanics

    # One process for each GPU, at most two. Without a GPU, two CPU processes.
    processes = min(2, torch.cuda.device_count()) or 2
    name = default_mechanics().name
    precision = "fp32" if name.endswith("fp32") else "bf16"
    mechanics = f"ds_configs/{name}.json"
    deepspeed = f"deepspeed --quiet --num_accelerators {processes} --master_port {PORT}"
    books = f"stories={HOME}/sample/books"
    return [
        (
            "write the sample",
            f"python -m data_prep.sample --out {HOME}/sample",
            "sample/sample.json",
        ),
        (
            "train a tokenizer",
            f"python -m data_prep.train_tokenizer --corpus {books}/train --vocab-size 2000 --out "
            f"{HOME}/tok",
            "tok/tokenizer.model",
        ),
        (
            "tokenise and shard on 2 MPI ranks",
            f"mpirun -n 2 python -m data_prep.build_shards --tokenizer {HOME}/tok --corpus {books}"
            "/train"
            f" --validation {books}/valid --out {HOME}/shards",
            "shards/manifest.json",
        ),
        (
            f"pre-train under DeepSpeed: {processes} processes, ZeRO-2, {precision}",
            f"{deepspeed} gpt1_ds/train.py --deepspeed_config {mechanics} --config "
            "gpt1_ds/configs/quickstart.yaml",
            "runs/pretrain/done",
        ),
        *(
            (
                f"fine-tune {folder} from the sharded checkpoint",
                f"{deepspeed} gpt1_ds/finetune.py --deepspeed_config {mechanics}"
                f" --config gpt1_ds/configs/finetune_{name}.yaml task.data={HOME}"
                f"/sample/tasks/{folder}"
                f" init.checkpoint={HOME}/runs/pretrain run.dir={HOME}/runs run.name={name} "
                f"{FINETUNING}",
                f"runs/{name}/done",
            )
            for name, folder in TASKS.items()
        ),
        (
            "write a paragraph",
            f"python -m gpt1_ds.generate {HOME}/runs/pretrain --prompt {shlex.quote(PROMPT)}",
            "",
        ),
    ]


def main() -> None:
    os.chdir(Path(__file__).resolve().parent)
    # deepspeed and mpirun are in the folder of the interpreter. So the user need not activate the
    # environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if os.geteuid() == 0:
        # Open MPI runs as root only with these variables. In a container the user is often root.
        os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    import torch

    from gpt1_ds.distributed.environment import free_port

    if not torch.cuda.is_available():
        # Without this, DeepSpeed prints a warning in each process.
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Open MPI may start two ranks even if it counts only one core.
    os.environ["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"

    plan = steps()
    forget_another_plan(plan)
    for number, (title, command, done) in enumerate(plan, 1):
        command = command.replace(PORT, str(free_port()))
        print(f"\n[{number}/{len(plan)}] {title}\n$ {command}", flush=True)
        run(title, command, HOME / done)
    print_summary()


def run(title: str, command: str, done: Path) -> None:
    if done.is_file():
        print("    done before, reused")
        return
    began = time.monotonic()
    if code := subprocess.run(shlex.split(command)).returncode:
        sys.exit(
            f"error: '{title}' ended with exit code {code}; mend what it says above, then run it "
            "again"
        )
    if done.name == "done":
        done.touch()  # files in a run folder do not show that the run is finished
    print(f"    {time.monotonic() - began:.0f} s")


def forget_another_plan(plan: list[Step]) -> None:
    """Delete quickstart/ if it was made by other commands or configuration files."""
    commands = [command for _, command, _ in plan]
    settings = sorted(
        {
            word
            for command in commands
            for word in command.split()
            if word.endswith((".json", ".yaml"))
        }
    )
    now = json.dumps(
        [*commands, *(Path(file).read_text(encoding="utf-8") for file in settings)], indent=1
    )
    record = HOME / "plan.json"
    if record.exists() and record.read_text(encoding="utf-8") != now:
        print(f"the quickstart has changed since {HOME}/ was made: starting anew")
        shutil.rmtree(HOME)
    HOME.mkdir(exist_ok=True)
    record.write_text(now, encoding="utf-8")


def print_summary() -> None:
    records = [
        json.loads(line) for line in open(HOME / "runs/pretrain/metrics.jsonl", encoding="utf-8")
    ]
    train, valid = (
        [record for record in records if record["split"] == split] for split in ("train", "valid")
    )
    rows = [
        ("training loss", f"{train[0]['loss']:.2f} -> {train[-1]['loss']:.2f} nats a token"),
        ("validation loss", f"{valid[0]['loss']:.2f} -> {valid[-1]['loss']:.2f} nats a token"),
        ("validation perplexity", f"{valid[0]['perplexity']:.0f} -> {valid[-1]['perplexity']:.2f}"),
    ]
    for name, folder in TASKS.items():
        result = json.loads((HOME / "runs" / name / "result.json").read_text(encoding="utf-8"))
        score = (
            f"{result['metric']} {result['score']:.3f} (majority class {result['majority']:.3f})"
        )
        rows.append((f"{folder}, fine-tuned", score))
    places = {
        "TensorBoard logs": "runs/*/",
        "checkpoints": "runs/pretrain/checkpoints/",
        "shards": "shards/",
    }
    rows += [(name, f"{HOME}/{place}") for name, place in places.items()]
    print("\n" + "\n".join(f"{name:<22} {value}" for name, value in rows))
    print(f"""
next:
  .venv/bin/tensorboard --logdir {HOME}/runs
  .venv/bin/python -m gpt1_ds.generate {HOME}/runs/pretrain --prompt "The old miller"
  .venv/bin/python -m data_prep.train_tokenizer --corpus books=YOUR_TEXT \\
      --vocab-size 8000 --out tok""")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped: interrupted; the same command continues where it was", file=sys.stderr)
        sys.exit(130)
