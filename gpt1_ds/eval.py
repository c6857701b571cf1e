"""Perplexity of a pre-trained run on the validation split of a shard directory, all of it.

python -m gpt1_ds.eval runs/small --data shards --corpus books
"""

import argparse
import math
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from tqdm import tqdm

from gpt1_ds import checkpoint
from gpt1_ds.errors import DataError, guard, near
from gpt1_ds.evaluation import validation_windows
from gpt1_ds.model import GPT, IGNORE
from gpt1_ds.shards import TokenStream, read_manifest

BATCH_WINDOWS = 16


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder (runs/NAME) or one of its checkpoints/step-*")
    parser.add_argument("--data", default="shards", help="shard directory (default: %(default)s)")
    parser.add_argument("--corpus", help="one corpus of its validation split (default: each)")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    args = parser.parse_args(argv)

    manifest = read_manifest(args.data)
    corpora = manifest.splits.get("valid", {})
    if args.corpus and args.corpus not in corpora:
        raise DataError(
            f"--corpus {args.corpus}: not in the validation split of {args.data}; {near(args.corpus, corpora)}"
        )
    model, state, folder = checkpoint.load_gpt(args.run)
    if state.get("tokenizer_sha256") != manifest.tokenizer["sha256"]:
        raise DataError(
            f"--data {args.data}: made with another tokenizer than {folder}; build shards with the run's own"
        )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for corpus in [args.corpus] if args.corpus else corpora:
        stream = TokenStream(args.data, manifest, "valid", corpus)
        if stream.tokens > 1:
            loss = mean_nll(model, stream, corpus)
            print(
                f"{folder.name} {corpus}: {loss:.4f} nats a token, perplexity {math.exp(loss):.2f}, "
                f"{stream.tokens:,} tokens"
            )


@torch.inference_mode()
def mean_nll(model: GPT, stream: TokenStream, description: str) -> float:
    """Nats a token over the whole stream, in windows of the model's context laid end to end."""
    n_ctx, device = model.config.n_ctx, model.wte.device
    windows = np.arange(-(-(stream.tokens - 1) // n_ctx))
    nll, tokens = 0.0, 0
    for first in tqdm(range(0, len(windows), BATCH_WINDOWS), desc=description, unit="batch", disable=None):
        ids_BT, targets_BT = validation_windows(stream, n_ctx, windows[first : first + BATCH_WINDOWS])
        nll += model(ids_BT.to(device), targets_BT.to(device))[1].double().sum().item()
        tokens += int((targets_BT != IGNORE).sum())
    return nll / tokens


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
