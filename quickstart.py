"""`make quickstart`: from the embedded sample text to a fine-tuned GPT-1, each step as a user would type it.

    python quickstart.py                about 5 minutes on 2 CPU cores, less on a GPU; a second run reuses what is done

Everything lies in quickstart/. A step whose result is there is not run again, and an interrupted training resumes. If
the steps or their configuration files are no longer those the folder was made with, it is made anew.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt1_ds import distributed

ROOT = Path(__file__).resolve().parent
HOME = Path("quickstart")
PROMPT = "One morning"
TASKS = {"sst2": "SST-2", "snli": "SNLI"}
# Of the paper's 6.25e-5, a model this small learns nothing in three epochs of 2,000 examples.
FINETUNING = "optim.lr=2e-3 schedule.warmup_fraction=0.1"
PORT = "PORT"  # stands for a free port: the launcher's default may be taken by another run on this machine


@dataclass
class Step:
    title: str
    command: str
    done: Path | None
    """The file whose presence says that the step is done; None: run it each time."""


def steps() -> list[Step]:
    # A GPU trains one process each; two CPU processes show the same path where there is none.
    processes = min(2, torch.cuda.device_count()) or 2
    mechanics = "ds_configs/zero2_bf16.json" if torch.cuda.is_available() else "ds_configs/cpu.json"
    deepspeed = f"deepspeed --quiet --num_accelerators {processes} --master_port {PORT}"
    steps = [
        Step("write the sample", f"python -m data_prep.sample --out {HOME}/sample", HOME / "sample/sample.json"),
        Step(
            "train a tokenizer",
            f"python -m data_prep.train_tokenizer --corpus stories={HOME}/sample/books/train --vocab-size 2000"
            f" --out {HOME}/tok",
            HOME / "tok/tokenizer.model",
        ),
        Step(
            "tokenise and shard on 2 MPI ranks",
            f"mpirun -n 2 python -m data_prep.build_shards --tokenizer {HOME}/tok"
            f" --corpus stories={HOME}/sample/books/train --validation stories={HOME}/sample/books/valid"
            f" --out {HOME}/shards",
            HOME / "shards/manifest.json",
        ),
        Step(
            f"pre-train under DeepSpeed: {processes} processes, ZeRO-2, bf16",
            f"{deepspeed} gpt1_ds/train.py --deepspeed_config {mechanics} --config gpt1_ds/configs/quickstart.yaml",
            HOME / "runs/pretrain/done",
        ),
    ]
    for name, folder in TASKS.items():
        steps.append(
            Step(
                f"fine-tune {folder} from the sharded checkpoint",
                f"{deepspeed} gpt1_ds/finetune.py --deepspeed_config {mechanics}"
                f" --config gpt1_ds/configs/finetune_{name}.yaml task.data={HOME}/sample/tasks/{folder}"
                f" init.checkpoint={HOME}/runs/pretrain run.dir={HOME}/runs run.name={name} {FINETUNING}",
                HOME / f"runs/{name}/done",
            )
        )
    prompt = f"python -m gpt1_ds.generate {HOME}/runs/pretrain --prompt {shlex.quote(PROMPT)}"
    return [*steps, Step("write a paragraph", prompt, None)]


def main() -> None:
    os.chdir(ROOT)
    # deepspeed and mpirun lie beside the interpreter, which need not be activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if os.geteuid() == 0:
        # Open MPI asks for a second thought before it runs as root, which is who one is in a container.
        os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed would find out by itself, with a warning a process
    # Two ranks start also where Open MPI counts one core.
    os.environ["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"

    plan = steps()
    forget_another_plan(plan)
    for number, step in enumerate(plan, 1):
        command = step.command.replace(PORT, str(distributed.free_port()))
        print(f"\n[{number}/{len(plan)}] {step.title}\n$ {command}", flush=True)
        run(step, command)
    print_summary()


def run(step: Step, command: str) -> None:
    if step.done and step.done.exists():
        print("    done before, reused")
        return
    began = time.monotonic()
    code = subprocess.run(shlex.split(command)).returncode
    if code:
        sys.exit(f"error: '{step.title}' ended with exit code {code}; mend what it says above, then run it again")
    if step.done and step.done.name == "done":
        step.done.touch()  # a training run's folder fills from its first step on
    print(f"    {time.monotonic() - began:.0f} s")


def forget_another_plan(plan: list[Step]) -> None:
    """Delete quickstart/ if it was made by other commands or configuration files."""
    words = sorted({word for step in plan for word in shlex.split(step.command)})
    settings = [word for word in words if word.endswith((".json", ".yaml")) and Path(word).exists()]
    files = {word: hashlib.sha256(Path(word).read_bytes()).hexdigest() for word in settings}
    now = json.dumps({"commands": [step.command for step in plan], "files": files}, indent=1) + "\n"
    record = HOME / "plan.json"
    if record.exists() and record.read_text(encoding="utf-8") != now:
        print(f"the quickstart has changed since {HOME}/ was made: starting anew")
        shutil.rmtree(HOME)
    HOME.mkdir(exist_ok=True)
    record.write_text(now, encoding="utf-8")


def print_summary() -> None:
    records = [json.loads(line) for line in open(HOME / "runs/pretrain/metrics.jsonl", encoding="utf-8")]
    train = [record for record in records if record["split"] == "train"]
    valid = [record for record in records if record["split"] == "valid"]
    rows = [
        ("training loss", f"{train[0]['loss']:.2f} -> {train[-1]['loss']:.2f} nats a token"),
        ("validation loss", f"{valid[0]['loss']:.2f} -> {valid[-1]['loss']:.2f} nats a token"),
        ("validation perplexity", f"{valid[0]['perplexity']:.0f} -> {valid[-1]['perplexity']:.2f}"),
    ]
    for name in TASKS:
        result = json.loads((HOME / "runs" / name / "result.json").read_text(encoding="utf-8"))
        score = f"{result['metric']} {result['score']:.3f} (majority class {result['majority']:.3f})"
        rows.append((f"{TASKS[name]}, fine-tuned", score))
    rows += [
        ("TensorBoard logs", f"{HOME}/runs/*/"),
        ("checkpoints", f"{HOME}/runs/pretrain/checkpoints/"),
        ("shards", f"{HOME}/shards/"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:{width}}  {value}" for name, value in rows))
    print(f"""
next:
  .venv/bin/tensorboard --logdir {HOME}/runs
  .venv/bin/python -m gpt1_ds.generate {HOME}/runs/pretrain --prompt "The old miller"
  .venv/bin/python -m data_prep.train_tokenizer --corpus books=YOUR_TEXT --vocab-size 8000 --out tok""")


if __name__ == "__main__":
    main()
