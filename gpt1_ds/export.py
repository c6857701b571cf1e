"""Hugging Face in and out.

    python -m gpt1_ds.export runs/gpt1 gpt1-hf                       a run or checkpoint -> a folder for transformers
    python -m gpt1_ds.export --from-hf openai-gpt runs/imported      such a folder -> a checkpoint
    python -m gpt1_ds.export --from-openai model/ runs/imported      OpenAI's params_0..9.npy -> a checkpoint

An imported folder is what `init.checkpoint` takes; build its shards with the tokenizer in it. A fine-tuning run is
exported at its best score, its head as head.safetensors. Export needs the extra `interchange`.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1_ds.base.errors import ConfigError, DataError, command
from gpt1_ds.base.files import write_atomically
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.interchange.card import ORIGINAL, model_card
from gpt1_ds.interchange.openai_release import openai_files, read_openai
from gpt1_ds.interchange.tokenizer_json import tokenizer_config_json, tokenizer_json
from gpt1_ds.interchange.weights import (
    config_json,
    gpt_config,
    read_config,
    read_weights,
    score_weight,
    to_ours,
    to_theirs,
    write_safetensors,
    write_weights,
)
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.runs.trained import build_gpt, run_tokenizer

TOLERANCE = 1e-4  # of logits, relative to the largest
PROBES = (
    "It's 10: \u201cCaf\u00e9 <e>\u201d, said A\u0301gnes\u2014 for $5...",
    "  \ttwo  <s><pad> lines\n<eot>",
    "\U0001f600",
)
"""Texts of which both sides must make the same ids."""
SEQUENCES = {"classification": 1, "entailment": 1, "multiple_choice": 1, "similarity": 2}
"""Kinds whose logits OpenAIGPTForSequenceClassification can give, and over how many sequences they are summed."""


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="RUN", help="run folder or one of its checkpoints; or a folder to import"
    )
    parser.add_argument("out", metavar="OUT", help="folder to make; it must not exist")
    kind = parser.add_mutually_exclusive_group()
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
    parser.add_argument(
        "--shard-gb",
        type=float,
        default=2.0,
        help="largest weights file, GB (default: %(default)s)",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    args = parser.parse_args(argv)
    source, out = Path(args.source), Path(args.out)
    if out.exists() or args.shard_gb <= 0:
        raise ConfigError(
            f"OUT {out}: exists; choose another" if out.exists() else "--shard-gb must be above 0"
        )
    with whole_folder(out) as folder:
        if args.from_hf or args.from_openai:
            config = import_weights(source, folder, args.from_openai)
            print(
                f"{out}: {config.parameters:,} parameters; start from them with init.checkpoint={out}"
            )
        else:
            command = shlex.join(["python", "-m", "gpt1_ds.export", *argv])
            difference = export(source, folder, int(args.shard_gb * 1e9), command)
            print(f"{out}: logits equal transformers' within {difference:.1e} of the largest")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `out` only once all has succeeded."""
    folder = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or out}: {error.strerror}; choose another OUT"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def export(source: Path, out: Path, shard_bytes: int, command: str) -> float:
    """Fill `out`; the largest difference of logits to transformers', relative to the largest logit.

    Memory holds the weights once: ours are written tensor by tensor, run, and dropped before transformers loads them.
    """
    transformers = _import_transformers()
    folder = find_checkpoint(
        source / "best" if (source / "best" / "checkpoints").is_dir() else source
    )
    weights, state = load_weights(folder)
    head = {name[5:]: weights.pop(name) for name in list(weights) if name.startswith("head.")}
    if state.get("model", {}).get("kind", "transformer") != "transformer":
        raise DataError(
            f"{folder}: transformers has no class for a model of kind {state['model']['kind']}"
        )
    model = build_gpt(
        {name.removeprefix("gpt."): weights.pop(name) for name in list(weights)}, state, folder
    )  # no name is left that would hold them
    tokenizer, home = run_tokenizer(folder, state), folder.parents[1] / "tokenizer"
    tensors = dict(to_theirs(*item, model.config) for item in model.state_dict().items())
    labels, sequences = None, 0
    if head:
        task, norm = state["task"], model.blocks[-1].ln_2
        sequences = (
            SEQUENCES.get(task["kind"], 0)
            if task.get("config", {}).get("pool", "last") == "last"
            else 0
        )
        score = score_weight(head, norm.weight, norm.bias, sequences) if sequences else None
        if score is not None:
            tensors["score.weight"] = score
            labels = task["classes"] if len(score) == len(task["classes"]) else ["score"]
        write_safetensors(
            out / "head.safetensors", head, {key: json.dumps(task[key]) for key in task}
        )
    write_weights(out, tensors, shard_bytes)
    for name, content in {
        "config.json": config_json(model.config, tokenizer.special_ids, labels),
        "tokenizer.json": tokenizer_json(tokenizer, home),
        "tokenizer_config.json": tokenizer_config_json(model.config.n_ctx),
    }.items():
        write_atomically(out / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    tokenizer.copy_to(out / "tokenizer")
    card = model_card(folder, state, model.config, labels, command)
    write_atomically(out / "README.md", card + ORIGINAL * (tokenizer.pipeline == "original"))
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    for text in PROBES if tokenizer.pipeline != "original" else ():
        if theirs.encode(text) != tokenizer.encode(text):
            raise DataError(
                f"{home}: transformers makes other ids of {text!r}; install transformers 5.23"
            )
    return _largest_difference(
        model, tensors, out, head if labels else {}, sequences, tokenizer.special_ids
    )


@torch.inference_mode()
def _largest_difference(
    model: GPT,
    tensors: dict[str, Tensor],
    out: Path,
    head: dict[str, Tensor],
    sequences: int,
    special_ids: dict[str, int],
) -> float:
    """Of logits of two random sequences, ours and transformers'; `model` and `tensors` are emptied in between."""
    transformers = _import_transformers()
    shape = 2, min(model.config.n_ctx, 64)
    ids_BT = torch.randint(
        model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0)
    )
    ids_BT[ids_BT == special_ids["pad"]] = ids_BT[:, -1] = special_ids["e"]
    hidden_BTC, _ = model(ids_BT)
    pairs = [
        ("AutoModelForCausalLM", F.linear(hidden_BTC, model.wte)[..., : model.config.vocab_size])
    ]
    if head:
        state_C = hidden_BTC[:sequences, -1].sum(0)
        pairs.append(
            ("AutoModelForSequenceClassification", F.linear(state_C, head["weight"], head["bias"]))
        )
    tensors.clear()
    model.to_empty(device="meta")
    differences = {}
    for name, ours in pairs:
        logits = getattr(transformers, name).from_pretrained(out)(ids_BT).logits
        theirs = logits if ours.ndim == 3 else logits[:sequences].sum(0)
        differences[name] = ((ours - theirs).abs().max() / ours.abs().max()).item()
        if not differences[name] < TOLERANCE:
            share = f"{differences[name]:.1e} of the largest"
            raise DataError(f"{out}: logits of {name} differ by {share}; nothing is exported")
    return max(differences.values())


def _import_transformers():
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "gpt1_ds.export needs transformers: pip install 'gpt1-ds[interchange]'"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def import_weights(source: Path, out: Path, openai: bool) -> GPTConfig:
    """Make `out` a folder of one weights-only checkpoint and its tokenizer; an export of ours comes back bit by bit."""
    if openai:
        theirs, shape = read_openai(source)
    else:
        shape, theirs = read_config(source), read_weights(source)
    (out / "tokenizer").mkdir()
    if (source / "tokenizer").is_dir():
        load_tokenizer(source / "tokenizer").copy_to(out / "tokenizer")
    else:
        for name, text in openai_files(source).items():
            write_atomically(out / "tokenizer" / name, text)
    tokenizer = load_tokenizer(out / "tokenizer")
    config = gpt_config(shape, tokenizer.vocab_size, source)
    weights = to_ours(theirs, config, source)
    origin = {"tokenizer_sha256": tokenizer.sha256, "imported": str(source.resolve())}
    save_weights(out, weights, {"step": 0, "model": asdict(config), **origin})
    return config


cli = command(main, __name__)
