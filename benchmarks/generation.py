"""Compares greedy generation on this CPU with transformers' `generate`, in tokens a second.

    python benchmarks/generation.py [--new-tokens 400] [--sequences 1]

Both generate the same text in float32 from the same random weights of GPT-1's shape (12 layers, 768
wide). They take turns every 20 tokens, so that other load on the machine affects both.
transformers has no cache for this model and reads the whole text again for each token. So the turns
do not slow it down. About 3 minutes on 2 idle cores.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from tqdm import tqdm

from gpt1_ds.base.errors import guard
from gpt1_ds.generate import generate
from gpt1_ds.interchange.weights import to_theirs
from gpt1_ds.model.gpt import GPT, GPTConfig

PROMPT_TOKENS, TURN_TOKENS = 8, 20


def with_the_weights_of(model: GPT):
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    theirs = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=model.config.vocab_size)).eval()
    weights = dict(to_theirs(*item, model.config) for item in model.state_dict().items())
    unfilled = theirs.load_state_dict(weights, strict=False).missing_keys
    assert all(name == "lm_head.weight" or name.endswith(".attn.bias") for name in unfilled), (
        unfilled
    )
    return theirs


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/generation.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--new-tokens", type=int, default=400, help="tokens a sequence (default: %(default)s)"
    )
    parser.add_argument(
        "--sequences", type=int, default=1, help="written side by side (default: %(default)s)"
    )
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model = GPT(GPTConfig(40_478)).eval()
    theirs = with_the_weights_of(model)
    prompts_BT = torch.randint(40_000, (args.sequences, PROMPT_TOKENS))

    texts_BT = prompts_BT
    ours = generate(model, {"eot": -1}, prompts_BT.tolist(), args.new_tokens)  # no token ends it
    written: list[list[int]] = [[] for _ in prompts_BT]
    seconds = {"ours": 0.0, "transformers": 0.0}
    print(f"{args.sequences} x {args.new_tokens} tokens, {torch.get_num_threads()} threads")
    for done in tqdm(range(0, args.new_tokens, TURN_TOKENS), "generation", disable=None):
        turn = min(TURN_TOKENS, args.new_tokens - done)
        started = time.perf_counter()
        for row, token in itertools.islice(ours, turn * args.sequences):
            written[row].append(token)
        seconds["ours"] += time.perf_counter() - started
        started = time.perf_counter()
        texts_BT = theirs.generate(
            texts_BT,
            attention_mask=torch.ones_like(texts_BT),
            do_sample=False,
            max_new_tokens=turn,
            eos_token_id=None,
            pad_token_id=0,
        )
        seconds["transformers"] += time.perf_counter() - started
    same = texts_BT[:, PROMPT_TOKENS:].tolist() == written
    for name, spent in seconds.items():
        print(
            f"{name:12} {args.sequences * args.new_tokens / spent:7.2f} tokens/s  ({spent:.1f} s)"
        )
    print(
        f"ratio        {seconds['transformers'] / seconds['ours']:7.2f}, "
        f"{'the same' if same else 'OTHER'} tokens"
    )
    return 0 if same else 1


if __name__ == "__main__":
    guard(main)
