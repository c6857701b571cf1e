"""Export a run to Hugging Face, or import one.

    python -m gpt1_ds.export runs/gpt1 --out gpt1-hf
    python -m gpt1_ds.export openai-gpt --from-hf --out runs/imported
    python -m gpt1_ds.export model --from-openai --out runs/imported

The first makes files for transformers out of a run. The others make a checkpoint out of such a
folder, and out of OpenAI's params_0..9.npy.

`init.checkpoint` takes an imported folder; build its shards with the tokenizer in it. The weights
of --from-openai get OpenAI's `original` text pipeline, with which they were trained. A fine-tuning
run is exported at its best score, its head as head.safetensors. Export needs the extra
`interchange`.
"""

import argparse
import contextlib
import importlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    importlib.import_module("gpt1_ds")  # before torch, so that Ctrl-C ends with one line

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1_ds.base.arguments import numeric
from gpt1_ds.base.bounds import COUNT, Bounds
from gpt1_ds.base.errors import ConfigError, DataError, UserError, command
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.options import AVERAGE_HELP, NEAR_OR_FAR_RUN_HELP, Parser, path
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.averaging import load_mean
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.openai_bpe import OPENAI_PIPELINES, PIPELINE_FILE
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.interchange.card import ORIGINAL, model_card
from gpt1_ds.interchange.configuration import config_json, gpt_config, read_config
from gpt1_ds.interchange.equality import (
    check_tokenizer,
    import_transformers,
    logits_in_transformers,
    logits_of_tensors,
    next_token_logits,
    pipeline_logits,
    probe_ids,
    relative_difference,
)
from gpt1_ds.interchange.openai_release import Release, openai_files, read_openai
from gpt1_ds.interchange.safetensors_files import read_weights, write_safetensors, write_weights
from gpt1_ds.interchange.tokenizer_json import tokenizer_config_json, tokenizer_json
from gpt1_ds.interchange.weights import CLASSIFIER, score_weight, to_ours, to_theirs
from gpt1_ds.model.gpt import GPT, Block
from gpt1_ds.runs.fine_tuned import best_checkpoint
from gpt1_ds.runs.remote_run import local_run
from gpt1_ds.runs.trained import build_gpt, run_tokenizer
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import Example, Task, build_task
from gpt1_ds.tasks.heads import TaskModel
from gpt1_ds.tasks.predicting import logits_of_rank

SEQUENCES = {"classification": 1, "entailment": 1, "multiple_choice": 1, "similarity": 2}
"""The kinds of tasks that transformers' sequence classifier supports, and for each the number of
sequences that the logits are summed over."""
IN_PIPELINE = ("classification", "entailment", "similarity")
"""Those of them whose texts the pipeline of transformers takes as they are."""
CHECKED_EXAMPLES = 200


class DevExamples(NamedTuple):
    task: Task
    examples: list[Example]


class Head(NamedTuple):
    """A task's head (K, C), and its form for transformers."""

    weights: dict[str, Tensor]
    """`weight` and `bias`; empty for a run of pre-training."""
    score: Tensor | None
    """The head as a matrix without bias; None if transformers has no class for it."""
    labels: list[str] | None
    """The classes; None if `score` is None."""
    sequences: int
    dev: DevExamples | None = None
    """Examples that the exported pipeline is checked with."""


class Asked(NamedTuple):
    """What a user asks of the weights."""

    shard_bytes: int
    """The largest file."""
    average: int | None
    """The mean of so many checkpoints."""


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.out is None and args.place is None:
        raise ConfigError("--out is not set; give the folder to make")
    if args.out is not None and args.place is not None:
        raise ConfigError(f"--out {args.out}: {args.place} is given too; leave one out")
    source, out = Path(args.source), args.out or args.place
    if out.exists():
        raise ConfigError(f"--out {out}: exists; choose another")
    if args.openai_pipeline and not (args.from_hf or args.from_openai):
        raise ConfigError("--openai-pipeline goes with --from-hf and --from-openai; leave it out")
    if args.average and (args.from_hf or args.from_openai):
        raise ConfigError("--average goes with the export of a run; leave it out")
    with whole_folder(out) as folder:
        if args.from_hf or args.from_openai:
            said = import_weights(source, folder, args.from_openai, args.openai_pipeline)
            print(f"{out}: {said}; start from it with init.checkpoint={out}")
        else:
            command_line = shlex.join(["python", "-m", "gpt1_ds.export", *argv])
            asked = Asked(int(args.shard_gb * 1e9), args.average)
            source = Path(local_run(args.source, args.average))
            said = export(source, folder, out, asked, command_line)
            print(f"{out}: {said}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "source", metavar="RUN", help=f"{NEAR_OR_FAR_RUN_HELP}; or a folder to import"
    )
    parser.add_argument(
        "place", nargs="?", type=path, metavar="OUT", help="the same as --out (default: --out)"
    )
    options = parser.add_argument_group("options")
    options.add_argument(
        "--out", type=path, metavar="DIR", help="folder to make; it must not exist (no default)"
    )
    kind = options.add_mutually_exclusive_group()
    kind.add_argument(
        "--from-hf",
        action="store_true",
        help="import a transformers folder of OpenAI GPT (safetensors)",
    )
    kind.add_argument(
        "--from-openai",
        action="store_true",
        help="import OpenAI's released arrays and tokenizer files",
    )
    options.add_argument(
        "--openai-pipeline",
        choices=OPENAI_PIPELINES,
        help="imports: text pipeline of OpenAI's BPE (default: that of pipeline.json in the "
        "folder, else original for --from-openai and transformers for --from-hf)",
    )
    options.add_argument(
        "--shard-gb",
        metavar="GB",
        type=numeric("--shard-gb", float, Bounds(high=1_000_000, open_low=True)),
        default=2.0,
        help="largest weights file, GB (default: %(default)s)",
    )
    options.add_argument(
        "--average", type=numeric("--average", int, COUNT), metavar="K", help=AVERAGE_HELP
    )
    return parser


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder. It is renamed to `out` if the block succeeds, else removed."""
    folder = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or out}: {error.strerror}; choose another --out"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def export(source: Path, out: Path, name: Path, asked: Asked, command_line: str) -> str:
    """Write the export to `out`, which becomes `name`; returns how it was compared, for the user.

    Memory holds the weights only once. They are written tensor by tensor and run, and then freed
    before transformers loads the export.
    """
    import_transformers()
    if asked.average:
        weights, state, folders = load_mean(source, asked.average)
    else:
        folders = [best_checkpoint(source)]
        weights, state = load_weights(folders[0])
    folder = folders[0]
    kind = state.model.get("kind", "transformer")
    if kind != "transformer":
        raise DataError(f"{folder}: transformers has no class for a model of kind {kind}")
    head_weights = _take(weights, "head.")
    # From here on only the model may hold the weights, because they are freed below.
    model = build_gpt(_take(weights, "gpt.", others=True), state, folder)
    tokenizer = run_tokenizer(folder, state)
    tensors = dict(to_theirs(*item, model.config) for item in model.state_dict().items())
    head = _head(head_weights, model, state)
    if head.score is not None:
        tensors["score.weight"] = head.score
    if head.weights:
        metadata = {key: json.dumps(value) for key, value in (state.task or {}).items()}
        write_safetensors(out / "head.safetensors", head.weights, metadata)
    write_weights(out, tensors, asked.shard_bytes)
    home = folder.parents[1] / "tokenizer"
    _write_json(out / "config.json", config_json(model.config, tokenizer.special_ids, head.labels))
    _write_json(out / "tokenizer.json", tokenizer_json(tokenizer, home, bool(head.weights)))
    _write_json(out / "tokenizer_config.json", tokenizer_config_json(model.config.n_ctx))
    tokenizer.copy_to(out / "tokenizer")
    card = model_card(folders, state.to_json(), model.config, head.labels, name, command_line)
    if tokenizer.pipeline == "original":
        card += ORIGINAL
    write_atomically(out / "README.md", card)
    check_tokenizer(tokenizer, out, home)
    return _check(model, tensors, out, head, tokenizer)


def _take(weights: dict[str, Tensor], prefix: str, others: bool = False) -> dict[str, Tensor]:
    """Remove the entries with `prefix` from `weights`, and return them without the prefix.

    With `others`, entries without the prefix are included.
    """
    names = [name for name in weights if others or name.startswith(prefix)]
    return {name.removeprefix(prefix): weights.pop(name) for name in names}


def _head(weights: dict[str, Tensor], model: GPT, state: CheckpointState) -> Head:
    """The task head of the run, if it has one."""
    task = state.task
    if not weights or task is None:
        return Head(weights, None, None, 0)
    pool = task.get("config", {}).get("pool", "last")
    sequences = SEQUENCES.get(task["kind"], 0) if pool == "last" else 0
    last_block = model.blocks[-1]
    assert isinstance(last_block, Block)
    norm = last_block.ln_2
    score = score_weight(weights, norm.weight, norm.bias, sequences) if sequences else None
    if score is None:
        return Head(weights, None, None, sequences)
    labels = task["classes"] if len(score) == len(task["classes"]) else ["score"]
    return Head(weights, score, labels, sequences, _dev_examples(state, sequences))


def _write_json(path: Path, content: Json) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _dev_examples(state: CheckpointState, sequences: int) -> DevExamples | None:
    """Some dev examples of the run's task, if its data are at hand and the pipeline takes them."""
    task = state.task or {}
    if not sequences or task["kind"] not in IN_PIPELINE:
        return None
    try:
        config = TaskConfig(**task["config"])
        if not config.data or not Path(config.data).exists():
            return None
        built = build_task(config, strict=False)
        examples = built.read(config.data, "dev")
    except (UserError, TypeError):
        return None
    return DevExamples(built, examples[:: -(-len(examples) // CHECKED_EXAMPLES)])


@torch.no_grad()
def _dev_logits(dev: DevExamples, model: GPT, head: Head, tokenizer: Tokenizer) -> Tensor:
    """Our logits (examples, K) of the dev examples."""
    task_model = TaskModel(model, dev.task.kind, dev.task.n_outputs, "last", 0.0).eval()
    task_model.head.load_state_dict(head.weights)
    encoded = dev.task.encode(dev.examples, tokenizer, model.config.n_ctx)
    rows = logits_of_rank(task_model, encoded, tokenizer.special_ids, "dev")
    assert rows is not None  # None only if a stop was requested, which cannot happen here
    return torch.tensor([rows[index] for index in range(len(encoded))])


def _check(
    model: GPT, tensors: dict[str, Tensor], out: Path, head: Head, tokenizer: Tokenizer
) -> str:
    """Compare logits with those of transformers; returns how far they differ, for the user.

    `model` and `tensors` are freed before transformers loads the export. Raises DataError if they
    differ.
    """
    ids_BT = probe_ids(model, tokenizer.special_ids)
    logits_of = {"AutoModelForCausalLM": next_token_logits(model, ids_BT)}
    if head.labels:
        with torch.no_grad():
            state_C = model(ids_BT)[0][: head.sequences, -1].sum(0)
            logits_K = F.linear(state_C, head.weights["weight"], head.weights["bias"])
        logits_of["AutoModelForSequenceClassification"] = logits_K
    dev = head.dev if tokenizer.pipeline != "original" else None
    ours = _dev_logits(dev, model, head, tokenizer) if dev else None
    tensors.clear()
    model.to_empty(device="meta")
    largest = 0.0
    for name, expected in logits_of.items():
        theirs = logits_in_transformers(out, name, ids_BT)
        if expected.ndim == 1:
            theirs = theirs[: head.sequences].sum(0)
        difference = relative_difference(expected, theirs, f"{out}: logits of {name}")
        largest = max(largest, difference)
    said = f"logits equal transformers' within {largest:.1e} of the largest"
    if dev and ours is not None:
        theirs = pipeline_logits(out, dev.task, dev.examples)
        difference = relative_difference(ours, theirs, f"{out}: logits of the pipeline")
        said += f", and within {difference:.1e} on {len(dev.examples)} dev examples in its pipeline"
    elif head.labels:
        said += "; no dev examples at hand to compare its pipeline with"
    return said


def import_weights(source: Path, out: Path, openai: bool, pipeline: str | None = None) -> str:
    """Import `source` as a weights-only checkpoint with its tokenizer in the folder `out`.

    The weights of an export by this project are restored bit for bit. `pipeline` is that of
    OpenAI's BPE, if it shall be another than the source's. Returns what was imported and how it
    was compared, for the user.
    """
    if openai:
        theirs = read_openai(source)
    else:
        config = read_config(source)
        theirs = Release(read_weights(source), config)
    home = out / "tokenizer"
    home.mkdir()
    _import_tokenizer(source, home, "original" if openai else "transformers", pipeline)
    tokenizer = load_tokenizer(home)
    ours = gpt_config(theirs.config, tokenizer.vocab_size, source)
    weights = to_ours(theirs.tensors, ours, source)
    state = CheckpointState(
        step=0,
        model=ours.to_dict(),
        tokenizer_sha256=tokenizer.sha256,
        imported=str(source.resolve()),
    )
    said = f"{ours.parameters:,} parameters; {_compared(source, theirs, weights, state, openai)}"
    if tokenizer.pipeline:
        said += f"; text pipeline {tokenizer.pipeline}"
    save_weights(out, weights, state)
    if CLASSIFIER in theirs.tensors:
        head = {CLASSIFIER: theirs.tensors[CLASSIFIER].float()}
        write_safetensors(out / "head.safetensors", head, {"format": "pt"})
        said += f"; the decoder is imported, {CLASSIFIER} lies beside it in head.safetensors"
    if theirs.left_out:
        said += f"; {theirs.left_out} arrays after those of the decoder are left out"
    return said


def _import_tokenizer(source: Path, home: Path, usual: str, pipeline: str | None) -> None:
    """Write the tokenizer of `source` to `home`; `usual`: the pipeline where nothing names one."""
    own = source / "tokenizer"
    if not own.is_dir():
        for name, text in openai_files(source, pipeline, usual).items():
            write_atomically(home / name, text)
        return
    load_tokenizer(own).copy_to(home)
    if pipeline is None:
        return
    if load_tokenizer(home).kind != "openai":
        raise ConfigError(f"--openai-pipeline {pipeline}: {own} is not OpenAI's BPE; leave it out")
    write_atomically(home / PIPELINE_FILE, json.dumps({"openai_pipeline": pipeline}))


def _compared(
    source: Path, theirs: Release, weights: dict[str, Tensor], state: CheckpointState, openai: bool
) -> str:
    """Compare the imported model's logits with the source's; DataError if they differ."""
    model = build_gpt(dict(weights), state, source)
    rows = theirs.tensors_of_decoder["tokens_embed.weight"].shape[0]
    ids_BT = probe_ids(model, {"pad": 0, "e": 1}).clamp(max=rows - 1)
    ours = next_token_logits(model, ids_BT)[..., :rows]
    try:
        if openai:
            expected = logits_of_tensors(theirs.tensors_of_decoder, theirs.config, ids_BT)
        else:
            expected = logits_in_transformers(source, "AutoModelForCausalLM", ids_BT)
    except ConfigError:
        return "not compared with the source, because transformers is not installed"
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).split("\n")[0][:200]
        return f"not compared with the source, which transformers cannot load ({reason})"
    difference = relative_difference(expected, ours, f"{source}: logits and the imported ones")
    return f"logits equal the source's within {difference:.1e} of the largest"


cli = command(main, __name__)
