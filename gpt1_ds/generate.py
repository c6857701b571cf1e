"""Write on from prompts with a pre-trained run.

    python -m gpt1_ds.generate runs/gpt1 --prompt "The captain looked at"
    python -m gpt1_ds.generate runs/gpt1 --prompt "He said" --num-samples 2
    python -m gpt1_ds.generate runs/gpt1 --prompt - < prompts.txt

A single continuation is shown as it is made. Several are made side by side and shown at the end,
each under a line `--- N`, in the order of the prompts. A continuation ends early where the model
ends the document.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt1_ds.base.arguments import SEED, numeric, stdin_lines, text_of
from gpt1_ds.base.bounds import COUNT_OR_ZERO, NUMBER
from gpt1_ds.base.errors import ConfigError, command
from gpt1_ds.base.options import NEAR_OR_FAR_RUN_HELP, Parser
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import progress
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.sampling import NEW_TOKENS, SAMPLES, TOP_P, Sampling, generate
from gpt1_ds.runs.remote_run import local_run
from gpt1_ds.runs.trained import load_gpt, run_tokenizer


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    model, tokenizer = load(args.run)
    eot = tokenizer.special_ids["eot"]
    sequences: list[list[int]] = []
    for text in read_prompts(args.prompt):
        prompt = [eot, *tokenizer.encode(text)]
        sequences += [[*prompt] for _ in range(args.num_samples)]
    tokens = generate(
        model,
        tokenizer.special_ids,
        sequences,
        args.max_new_tokens,
        Sampling(args.temperature, args.top_k, args.top_p),
        args.seed,
    )
    if len(sequences) == 1:
        stream(tokenizer, sequences[0], tokens)
        return
    # `generate` works on copies of the texts, so these can change while it runs.
    with progress("generating", args.max_new_tokens * len(sequences), "token") as bar:
        for row, token in tokens:
            sequences[row].append(token)
            bar.update()
    for number, sequence in enumerate(sequences, start=1):
        print(f"--- {number}\n{tokenizer.decode(sequence)}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help=NEAR_OR_FAR_RUN_HELP)
    text = parser.add_argument_group("text").add_argument
    text(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to continue; repeatable; '-': one from each line of standard input "
        "(default: begin a document)",
    )
    text(
        "--max-new-tokens",
        metavar="TOKENS",
        type=numeric("--max-new-tokens", int, NEW_TOKENS),
        default=120,
        help="tokens a sample (default: %(default)s)",
    )
    text(
        "--num-samples",
        metavar="N",
        type=numeric("--num-samples", int, SAMPLES),
        default=1,
        help="samples a prompt (default: %(default)s)",
    )
    sampling = parser.add_argument_group("sampling").add_argument
    sampling(
        "--temperature",
        metavar="T",
        type=numeric("--temperature", float, NUMBER),
        default=0.8,
        help="divides the logits; 0: always the likeliest token (default: %(default)s)",
    )
    sampling(
        "--top-k",
        metavar="K",
        type=numeric("--top-k", int, COUNT_OR_ZERO),
        default=40,
        help="draw from the K likeliest tokens; 0: from all (default: %(default)s)",
    )
    sampling(
        "--top-p",
        metavar="P",
        type=numeric("--top-p", float, TOP_P),
        default=1.0,
        help="draw from the likeliest tokens that together have this probability, above 0 "
        "(default: %(default)s)",
    )
    sampling(
        "--seed",
        metavar="N",
        type=numeric("--seed", int, SEED),
        default=0,
        help="seed of the draws (default: %(default)s)",
    )
    return parser


def load(run: Path | str) -> tuple[GPT, Tokenizer]:
    """The model of a pre-training run, on the GPU if there is one, and its tokenizer."""
    model, state, folder = load_gpt(local_run(run))
    return model.to(collectives.device()), run_tokenizer(folder, state)


def read_prompts(given: Sequence[str] | None) -> list[str]:
    """The texts of `--prompt`; without it, one empty text. ConfigError if all are empty."""
    if not given:
        return [""]
    texts: list[str] = []
    for text in given:
        texts += stdin_lines("--prompt -") if text == "-" else [text_of("--prompt", text)]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ConfigError("--prompt: no text; give some, or leave it out to begin a document")
    return texts


def stream(tokenizer: Tokenizer, sequence: list[int], tokens: Iterator[tuple[int, int]]) -> None:
    """Print the prompt, then the text of each new token.

    A character of several byte tokens is printed when it is complete.
    """
    shown = tokenizer.decode(sequence)
    print(shown, end="", flush=True)
    for _, token in tokens:
        sequence.append(token)
        text = tokenizer.decode(sequence)
        if not text.endswith("\ufffd"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.decode(sequence)[len(shown) :])


cli = command(main, __name__)
