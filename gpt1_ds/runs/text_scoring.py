"""What `eval` prints of a text: perplexities, bits a byte, the surprisal of each word."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.manifest import MANIFEST
from gpt1_ds.distributed import collectives
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.perplexity import sum_and_error, token_nll
from gpt1_ds.runs.surprisal import surprisal_table
from gpt1_ds.runs.texts import Text, read_shards, read_text
from gpt1_ds.runs.trained import load_gpt, run_tokenizer, title_of

LARGEST_EXPONENT = 700.0
"""The largest float64 is about e^709."""


@dataclass(frozen=True)
class AskedText:
    """What a user asks of a text."""

    run: str
    data: Path
    corpus: str | None = None
    lines: bool = False
    stride: int | None = None
    surprisal: Path | None = None
    average: int | None = None


def score_text(asked: AskedText) -> None:
    """Print perplexities and bits a byte of a pre-trained run on --data."""
    if not asked.data.exists():
        raise DataError(
            f"--data {asked.data}: not there; give a shard directory (data_prep.build_shards makes "
            "one), a text file or a folder of .txt files"
        )
    is_shards = asked.data.is_dir() and (asked.data / MANIFEST).exists()
    if asked.corpus and not is_shards:
        raise ConfigError(
            f"--corpus does not go with --data {asked.data}, plain text; leave it out"
        )
    if asked.lines and is_shards:
        raise ConfigError(
            f"--lines does not go with --data {asked.data}, a shard directory; leave it out"
        )
    if asked.surprisal and is_shards:
        raise ConfigError(
            f"--surprisal does not go with --data {asked.data}, a shard directory; give the text "
            "itself"
        )
    model, state, folder = load_gpt(asked.run, asked.average)
    tokenizer = run_tokenizer(folder, state)
    n_ctx = model.config.n_ctx
    stride = n_ctx if asked.stride is None else asked.stride
    if not 1 <= stride <= n_ctx:
        raise ConfigError(f"--stride {stride}: must be 1 to {n_ctx}, the model's context")
    model.to(collectives.device())
    texts: Iterable[Text]
    if is_shards:
        texts = read_shards(asked.data, asked.corpus, tokenizer)
    else:
        texts = [read_text(asked.data, asked.lines, tokenizer)]
    for text in texts:
        nll_T = token_nll(model, text.documents, stride, text.name)
        name = title_of(folder.name, asked.average)
        print_perplexities(model, text, nll_T, f"{name} on {text.name}, stride {stride}")
        if asked.surprisal:
            write_atomically(asked.surprisal, surprisal_table(text, nll_T, tokenizer))
            print(f"{asked.surprisal}: the nats of each word")
    if tokenizer.folds_case:
        print(
            "  the tokenizer folds case: a text and its capitals score alike, so compare with "
            "tokenizers that do so too (train_tokenizer --case keep makes a cased one)"
        )


def print_perplexities(model: GPT, text: Text, nll_T: np.ndarray, title: str) -> None:
    n_ctx = model.config.n_ctx
    nats, error = sum_and_error(nll_T, text.documents, n_ctx)
    tokens = len(nll_T)
    bits = math.log(2) * text.bytes
    print(f"{title}: {nats / tokens:.4f} ± {error / tokens:.4f} nats a token")
    print(perplexity("token", nats / tokens, error / tokens, f"{tokens:,} tokens"))
    if text.words is None:
        print(
            "  word perplexity: this tokenizer's tokens do not tell the words; "
            "give --data the text itself"
        )
    else:
        words = text.words + text.ends
        counted = f"{text.words:,} words and {text.ends:,} ends"
        print(perplexity("word", nats / words, error / words, counted))
    print(f"  bits per byte    {nats / bits:12.4f} ± {error / bits:.4f}, {text.bytes:,} bytes")


def perplexity(unit: str, nats: float, error: float, counted: str) -> str:
    mean = math.exp(min(nats, LARGEST_EXPONENT))
    return f"  {unit + ' perplexity':16} {mean:12.4f} ± {mean * error:.4f}, {counted}"
