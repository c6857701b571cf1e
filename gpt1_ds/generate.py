"""Write on from a prompt with a pre-trained run.

python -m gpt1_ds.generate runs/small --prompt "The captain looked at the sea and" --num-samples 2
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from gpt1_ds import checkpoint
from gpt1_ds.errors import ConfigError, DataError, guard
from gpt1_ds.model import GPT, KVCache
from gpt1_ds.tokenizer import Tokenizer, load_tokenizer


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder (runs/NAME) or one of its checkpoints/step-*")
    parser.add_argument("--prompt", default="", help="text to continue (default: begin a document)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=120, help="tokens a sample at most (default: %(default)s)"
    )
    parser.add_argument("--num-samples", type=int, default=1, help="continuations to write (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest (default: %(default)s)")
    parser.add_argument(
        "--top-k", type=int, default=40, help="sample among the K likeliest; 0: all (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: %(default)s)")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    args = parser.parse_args(argv)
    if args.temperature < 0 or args.top_k < 0 or args.max_new_tokens < 1 or args.num_samples < 1:
        raise ConfigError("--temperature and --top-k must be 0 or more, --max-new-tokens and --num-samples 1 or more")

    model, tokenizer = load(args.run)
    prompt = [tokenizer.special_ids["eot"], *tokenizer.encode(args.prompt)]
    generator = torch.Generator().manual_seed(args.seed)
    ids_BT = torch.tensor([prompt] * args.num_samples)
    new_BT = generate(model, ids_BT, args.max_new_tokens, args.temperature, args.top_k, tokenizer, generator)
    end = tokenizer.special_ids["eot"]
    for number, new in enumerate(new_BT.tolist()):
        text = tokenizer.decode(prompt[1:] + (new[: new.index(end)] if end in new else new))
        print(f"--- {number + 1}\n{text}" if args.num_samples > 1 else text)


def load(run: Path | str) -> tuple[GPT, Tokenizer]:
    """The model of a pre-training run, and the tokenizer that lies beside its checkpoints."""
    model, state, folder = checkpoint.load_gpt(run)
    tokenizer = load_tokenizer(folder.parents[1] / "tokenizer")
    if state.get("tokenizer_sha256") != tokenizer.sha256:
        raise DataError(f"{folder.parents[1] / 'tokenizer'}: not the tokenizer of {folder}; restore the run's own")
    return model, tokenizer


@torch.inference_mode()
def generate(model: GPT, ids_BT: Tensor, max_new_tokens: int, temperature: float, top_k: int, tokenizer: Tokenizer,
             generator: torch.Generator) -> Tensor:  # fmt: skip
    """Continuations (B, max_new_tokens) of `ids_BT`; past the context, the older half of it is forgotten."""
    n_ctx, prompt_tokens = model.config.n_ctx, ids_BT.shape[1]
    silent = [number for name, number in tokenizer.special_ids.items() if name != "eot"]
    cache: KVCache = []
    fresh_BT = ids_BT[:, -n_ctx:]
    for _ in range(max_new_tokens):
        if cache and cache[0][0].shape[2] == n_ctx:
            cache, fresh_BT = [], ids_BT[:, -(n_ctx // 2) :]
        _, logits_BV = model(fresh_BT, cache=cache, logits=True)
        logits_BV[:, silent] = float("-inf")
        fresh_BT = _choose(logits_BV, temperature, top_k, generator)
        ids_BT = torch.cat([ids_BT, fresh_BT], dim=1)
    return ids_BT[:, prompt_tokens:]


def _choose(logits_BV: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    logits_BV = logits_BV / temperature
    if 0 < top_k < logits_BV.shape[1]:
        logits_BV[logits_BV < logits_BV.topk(top_k).values[:, -1:]] = float("-inf")
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
