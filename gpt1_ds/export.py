"""Hugging Face in and out.

    python -m gpt1_ds.export runs/gpt1 gpt1-hf                     a run -> files for transformers
    python -m gpt1_ds.export --from-hf openai-gpt runs/imported    such a folder -> a checkpoint
    python -m gpt1_ds.export --from-openai model/ runs/imported    params_0..9.npy -> a checkpoint

`init.checkpoint` takes an imported folder; build its shards with the tokenizer in it. A fine-tuning
run is exported at its best score, its head as head.safetensors. Export needs the extra
`interchange`.
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
from types import ModuleType
from typing import NamedTuple

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1_ds.base.errors import ConfigError, DataError, command
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.options import Parser
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.interchange.card import ORIGINAL, model_card
from gpt1_ds.interchange.configuration import config_json, gpt_config, read_config
from gpt1_ds.interchange.openai_release import Release, openai_files, read_openai
from gpt1_ds.interchange.safetensors_files import read_weights, write_safetensors, write_weights
from gpt1_ds.interchange.tokenizer_json import tokenizer_config_json, tokenizer_json
from gpt1_ds.interchange.weights import score_weight, to_ours, to_theirs
from gpt1_ds.model.gpt import GPT, Block, GPTConfig
from gpt1_ds.runs.trained import build_gpt, run_tokenizer

TOLERANCE = 1e-4
"""Largest allowed difference to transformers' logits, relative to the largest logit."""
PROBES = (
    "It's 10: \u201cCaf\u00e9 <e>\u201d, said A\u0301gnes\u2014 for $5...",
    "  \ttwo  <s><pad> lines\n<eot>",
    "\U0001f600",
)
"""Texts that our tokenizer and the exported one must give the same ids."""
SEQUENCES = {"classification": 1, "entailment": 1, "multiple_choice": 1, "similarity": 2}
"""The kinds of tasks that transformers' sequence classifier supports, and for each the number of
sequences that the logits are summed over."""
PROBE_TOKENS = 64


class Head(NamedTuple):
    """A task's head (K, C), and its form for transformers."""

    weights: dict[str, Tensor]
    """`weight` and `bias`; empty for a run of pre-training."""
    score: Tensor | None
    """The head as a matrix without bias; None if transformers has no class for it."""
    labels: list[str] | None
    """The classes; None if `score` is None."""
    sequences: int


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    source, out = Path(args.source), Path(args.out)
    if out.exists():
        raise ConfigError(f"OUT {out}: exists; choose another")
    if args.shard_gb <= 0:
        raise ConfigError("--shard-gb must be above 0")
    with whole_folder(out) as folder:
        if args.from_hf or args.from_openai:
            config = import_weights(source, folder, args.from_openai)
            print(
                f"{out}: {config.parameters:,} parameters; "
                f"start from them with init.checkpoint={out}"
            )
        else:
            command_line = shlex.join(["python", "-m", "gpt1_ds.export", *argv])
            difference = export(source, folder, int(args.shard_gb * 1e9), command_line)
            print(f"{out}: logits equal transformers' within {difference:.1e} of the largest")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
            f"{error.filename or out}: {error.strerror}; choose another OUT"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def export(source: Path, out: Path, shard_bytes: int, command_line: str) -> float:
    """Write the export to `out`; returns the largest relative difference to transformers' logits.

    Memory holds the weights only once. They are written tensor by tensor and run, and then freed
    before transformers loads the export.
    """
    _import_transformers()
    has_best = (source / "best" / "checkpoints").is_dir()
    folder = find_checkpoint(source / "best" if has_best else source)
    weights, state = load_weights(folder)
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
    write_weights(out, tensors, shard_bytes)
    home = folder.parents[1] / "tokenizer"
    _write_json(out / "config.json", config_json(model.config, tokenizer.special_ids, head.labels))
    _write_json(out / "tokenizer.json", tokenizer_json(tokenizer, home))
    _write_json(out / "tokenizer_config.json", tokenizer_config_json(model.config.n_ctx))
    tokenizer.copy_to(out / "tokenizer")
    card = model_card(folder, state.to_json(), model.config, head.labels, command_line)
    if tokenizer.pipeline == "original":
        card += ORIGINAL
    write_atomically(out / "README.md", card)
    _check_tokenizer(tokenizer, out, home)
    return _largest_difference(model, tensors, out, head, tokenizer.special_ids)


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
    return Head(weights, score, labels, sequences)


def _write_json(path: Path, content: Json) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _check_tokenizer(tokenizer: Tokenizer, out: Path, home: Path) -> None:
    """Raises DataError if the exported tokenizer gives other ids than ours for `PROBES`."""
    if tokenizer.pipeline == "original":
        return  # tokenizer.json cannot express this pipeline; the model card says so
    theirs = _import_transformers().AutoTokenizer.from_pretrained(out)
    for text in PROBES:
        if theirs.encode(text) != tokenizer.encode(text):
            raise DataError(
                f"{home}: transformers makes other ids of {text!r}; install transformers 5.23"
            )


@torch.inference_mode()
def _largest_difference(
    model: GPT,
    tensors: dict[str, Tensor],
    out: Path,
    head: Head,
    special_ids: dict[str, int],
) -> float:
    """Compare the logits of two random sequences; returns the largest relative difference.

    `model` and `tensors` are freed before transformers loads the export. Raises DataError above
    `TOLERANCE`.
    """
    vocab_size = model.config.vocab_size
    shape = 2, min(model.config.n_ctx, PROBE_TOKENS)
    ids_BT = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0))
    ids_BT[ids_BT == special_ids["pad"]] = special_ids["e"]
    ids_BT[:, -1] = special_ids["e"]
    hidden_BTC, _ = model(ids_BT)
    logits_of = {"AutoModelForCausalLM": F.linear(hidden_BTC, model.wte)[..., :vocab_size]}
    if head.labels:
        state_C = hidden_BTC[: head.sequences, -1].sum(0)
        logits_K = F.linear(state_C, head.weights["weight"], head.weights["bias"])
        logits_of["AutoModelForSequenceClassification"] = logits_K
    tensors.clear()
    model.to_empty(device="meta")
    transformers = _import_transformers()
    largest = 0.0
    for name, ours in logits_of.items():
        theirs = getattr(transformers, name).from_pretrained(out)(ids_BT).logits
        if ours.ndim == 1:
            theirs = theirs[: head.sequences].sum(0)
        difference = ((ours - theirs).abs().max() / ours.abs().max()).item()
        if not difference < TOLERANCE:
            share = f"{difference:.1e} of the largest"
            raise DataError(f"{out}: logits of {name} differ by {share}; nothing is exported")
        largest = max(largest, difference)
    return largest


def _import_transformers() -> ModuleType:
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
    """Import `source` as a weights-only checkpoint with its tokenizer in the folder `out`.

    The weights of an export by this project are restored bit for bit.
    """
    if openai:
        theirs = read_openai(source)
    else:
        config = read_config(source)
        theirs = Release(read_weights(source), config)
    home = out / "tokenizer"
    home.mkdir()
    if (source / "tokenizer").is_dir():
        load_tokenizer(source / "tokenizer").copy_to(home)
    else:
        for name, text in openai_files(source).items():
            write_atomically(home / name, text)
    tokenizer = load_tokenizer(home)
    ours = gpt_config(theirs.config, tokenizer.vocab_size, source)
    weights = to_ours(theirs.tensors, ours, source)
    state = CheckpointState(
        step=0,
        model=asdict(ours),
        tokenizer_sha256=tokenizer.sha256,
        imported=str(source.resolve()),
    )
    save_weights(out, weights, state)
    return ours


cli = command(main, __name__)
