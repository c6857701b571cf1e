"""Write on from prompts with a pre-trained run.

    python -m gpt1_ds.generate runs/gpt1 --prompt "The captain looked at the sea and"
    python -m gpt1_ds.generate runs/gpt1 --prompt "He said" --prompt "She said" --num-samples 2
    python -m gpt1_ds.generate runs/gpt1 --prompt - < prompts.txt

One continuation of one prompt is shown as it comes. Several go through the model side by side and are shown at the end,
each under a line `--- N`, in the order of the prompts. A continuation ends early where the model ends the document.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor

from gpt1_ds import checkpoint, distributed
from gpt1_ds.errors import ConfigError, guard
from gpt1_ds.metrics import progress_bar
from gpt1_ds.model import GPT, KVCache
from gpt1_ds.tokenizer import Tokenizer

BATCH_SEQUENCES = 32


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder (runs/NAME) or one of its checkpoints/step-*")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="text to continue; repeatable; '-': one from "
                        "each line of standard input (default: begin a document)")  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, default=120, help="tokens a sample (default: %(default)s)")
    parser.add_argument("--num-samples", type=int, default=1, help="samples a prompt (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=40, help="of the K likeliest; 0: of all (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="of the likeliest that together have this probability "
                        "(above 0, default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    args = parser.parse_args(argv)
    if not (args.temperature >= 0 and args.top_k >= 0 and args.max_new_tokens >= 1 and args.num_samples >= 1):
        raise ConfigError("--temperature and --top-k must be 0 or more, --max-new-tokens and --num-samples 1 or more")
    if not 0 < args.top_p <= 1 or args.seed < 0:
        raise ConfigError("--top-p must be above 0 and at most 1, --seed 0 or more")

    model, tokenizer = load(args.run)
    prompts = [[tokenizer.special_ids["eot"], *tokenizer.encode(text)] for text in read_prompts(args.prompt)]
    sequences = [[*prompt] for prompt in prompts for _ in range(args.num_samples)]
    tokens = generate(model, tokenizer.special_ids, sequences, args.max_new_tokens, args.temperature, args.top_k,
                      args.top_p, args.seed)  # fmt: skip
    if len(sequences) == 1:
        return stream(tokenizer, sequences[0], tokens)
    with progress_bar(args.max_new_tokens * len(sequences), 0, "token", "generating") as bar:
        for row, token in tokens:
            sequences[row].append(token)
            bar.update()
    for number, sequence in enumerate(sequences, start=1):
        print(f"--- {number}\n{tokenizer.decode(sequence)}")


def load(run: Path | str) -> tuple[GPT, Tokenizer]:
    """The model of a pre-training run, on the GPU where there is one, and the tokenizer beside its checkpoints."""
    model, state, folder = checkpoint.load_gpt(run)
    return model.to(distributed.device()), checkpoint.run_tokenizer(folder, state)


def read_prompts(given: Sequence[str] | None) -> list[str]:
    texts = []
    for text in given or [""]:
        # The bytes, since a line that is not UTF-8 should cost its odd characters and not the run.
        texts += sys.stdin.buffer.read().decode(errors="replace").splitlines() if text == "-" else [text]
    texts = [text for text in texts if text.strip()] if given else texts
    if not texts:
        raise ConfigError("--prompt: no text; give some, or leave it out to begin a document")
    return texts


def stream(tokenizer: Tokenizer, sequence: list[int], tokens: Iterator[tuple[int, int]]) -> None:
    """Print the prompt, then the text of each token as it comes; a character spelled in bytes when it is whole."""
    shown = tokenizer.decode(sequence)
    print(shown, end="", flush=True)
    for _, token in tokens:
        sequence.append(token)
        text = tokenizer.decode(sequence)
        if not text.endswith("\ufffd"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.decode(sequence)[len(shown) :])


def generate(
    model: GPT, special_ids: dict[str, int], prompts: Sequence[Sequence[int]], max_new_tokens: int,
    temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0,
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """(index of a prompt, its next token), as they come, each prompt's until `max_new_tokens` or its `<eot>`.

    A prompt's continuation depends on it, its index and the seed, not on the others. Of a prompt longer than the
    context the end is read; a context that is full is begun anew with its newer half.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for rows in (order[first : first + BATCH_SEQUENCES] for first in range(0, len(order), BATCH_SEQUENCES)):
        seeds = [int(np.random.SeedSequence((seed, index)).generate_state(1)[0]) for index in rows]
        choices = [partial(_choose, temperature, top_k, top_p, torch.Generator().manual_seed(s)) for s in seeds]
        texts = [list(prompts[index][-model.config.n_ctx :]) for index in rows]
        for row, token in _batch(model, special_ids, texts, max_new_tokens, choices):
            yield rows[row], token


@torch.inference_mode()
def _batch(
    model: GPT, special_ids: dict[str, int], texts: list[list[int]], max_new_tokens: int,
    choices: list[Callable[[Tensor], int]],
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """`generate` for `texts`, which grow: all stand at position 0, so that nothing is padded, and the end of the longer
    ones is still being read while the shortest is already written on."""
    n_ctx, device, eot = model.config.n_ctx, model.wte.device, special_ids["eot"]
    silent = [number for name, number in special_ids.items() if name != "eot"]
    limits = [len(text) + max_new_tokens for text in texts]
    unended = set(range(len(texts)))
    cache: KVCache = []
    start, fed, length = 0, 0, min(map(len, texts))  # tokens `start` to `fed` are cached; up to `length` come next
    while unended:
        if length - start > n_ctx:
            cache, start = [], length - n_ctx // 2
            fed = start
        ids_BT = torch.tensor([text[fed:length] for text in texts], device=device)
        logits_BV = model(ids_BT, cache=cache, logits=True)[1].cpu()
        logits_BV[:, silent] = float("-inf")
        for row in [row for row, text in enumerate(texts) if len(text) == length]:
            token = eot
            if row in unended:
                token = choices[row](logits_BV[row])
                if token != eot:
                    yield row, token
                if token == eot or length + 1 == limits[row]:
                    unended.remove(row)
            texts[row].append(token)
        fed, length = length, length + 1


def _choose(temperature: float, top_k: int, top_p: float, generator: torch.Generator, logits_V: Tensor) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    values_K, ids_K = logits_V.topk(min(top_k or len(logits_V), len(logits_V)))
    weights_K = ((values_K - values_K[0]) / temperature).softmax(-1)
    weights_K[weights_K.cumsum(-1) - weights_K >= top_p] = 0.0  # those after the likeliest that reach `top_p`
    return int(ids_K[torch.multinomial(weights_K, 1, generator=generator)])


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
