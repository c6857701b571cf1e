"""Sampling against plain loops without a cache, and against transformers' greedy search."""

import io
import sys
from collections import Counter

import pytest
import torch

from gpt1_ds import generate
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.sampling import GREEDY, Sampling
from tests.conftest import run, succeed

LONG, SHORT, OTHER = [4, *range(20, 45)], [4, 7], [4, 9, 11, 200]


@pytest.fixture(scope="module")
def tokenizer(tiny_shards) -> Tokenizer:
    return load_tokenizer(tiny_shards / "tokenizer")


@pytest.fixture(scope="module")
def model(tokenizer) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.vocab_size - 3, n_layer=3, n_head=4, n_embd=32, n_ctx=48)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from uniform, and so are the padding rows.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def continuations(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> list[list[int]]:
    new: list[list[int]] = [[] for _ in prompts]
    special_ids = tokenizer.special_ids
    for row, token in generate.generate(model, special_ids, prompts, tokens, sampling, seed):
        new[row].append(token)
    return new


@torch.inference_mode()
def plain(model: GPT, tokenizer: Tokenizer, prompt: list[int], tokens: int) -> list[int]:
    """Greedy, without a cache: a context of n_ctx tokens is replaced by its newer half."""
    silent = [number for name, number in tokenizer.special_ids.items() if name != "eot"]
    n_ctx, text = model.config.n_ctx, prompt[-model.config.n_ctx :]
    start, length = 0, len(text)
    while len(text) < length + tokens:
        if len(text) - start > n_ctx:
            start = len(text) - n_ctx // 2
        logits_V = model(torch.tensor([text[start:]]), logits=True)[1][0]
        logits_V[silent] = -torch.inf
        token = int(logits_V.argmax())
        if token == tokenizer.special_ids["eot"]:
            break
        text.append(token)
    return text[length:]


@pytest.mark.parametrize(
    "prompts",
    [[SHORT], [LONG, SHORT, OTHER, SHORT], [LONG * 3, LONG]],
    ids=["one", "of different lengths", "longer than the context"],
)
def test_greedy_equals_a_plain_loop_past_the_context(model, tokenizer, prompts):
    expected = [plain(model, tokenizer, prompt, 120) for prompt in prompts]
    assert continuations(model, tokenizer, prompts, 120) == expected
    assert len({*map(tuple, expected)}) > 1 or len(prompts) == 1


@pytest.mark.parametrize(
    ("batch", "lengths"), [(1, (1, 1, 46)), (3, (9, 1, 1, 20, 1, 16)), (2, (47, 1)), (8, (48,))]
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_cached_logits_equal_uncached_ones(model, batch, lengths, context):
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, 300, (batch, sum(lengths)), generator=generator)
    cache, end = [], 0
    with context():
        for length in lengths:
            end += length
            _, cached_BV = model(ids_BT[:, end - length : end], cache=cache, logits=True)
            _, whole_BV = model(ids_BT[:, :end], logits=True)
            torch.testing.assert_close(cached_BV, whole_BV, rtol=1e-5, atol=1e-5)


def theirs(model: GPT):
    """transformers' model with the weights of ours; the padding of the vocabulary is left out."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    shape = transformers.OpenAIGPTConfig(
        vocab_size=config.vocab_size,
        n_positions=config.n_ctx,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
    )
    other = transformers.OpenAIGPTLMHeadModel(shape).eval()
    state = {
        "transformer.tokens_embed.weight": model.wte[: config.vocab_size],
        "transformer.positions_embed.weight": model.wpe,
    }
    for name, parameter in model.blocks.named_parameters():
        is_matrix = parameter.ndim == 2  # Conv1D keeps the transpose
        state[f"transformer.h.{name}"] = parameter.T if is_matrix else parameter
    state["lm_head.weight"] = state["transformer.tokens_embed.weight"]
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    for name, buffer in other.state_dict().items():
        if name not in state and "bias" in name:
            state[name] = buffer
    assert not other.load_state_dict(state, strict=False).missing_keys
    return other


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
def test_greedy_equals_transformers(model, tokenizer, tiny_run, trained):
    if trained:
        model, tokenizer = generate.load(tiny_run)
    other, eot = theirs(model), tokenizer.special_ids["eot"]
    silent = [number for name, number in tokenizer.special_ids.items() if name != "eot"]
    prompts = [SHORT, OTHER, [eot, *tokenizer.encode("the old miller")], [eot]]
    for prompt, mine in zip(prompts, continuations(model, tokenizer, prompts, 20), strict=True):
        ids_BT = other.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=eot,
            pad_token_id=0,
            suppress_tokens=silent,
        )
        new = ids_BT[0, len(prompt) :].tolist()
        assert mine == (new[: new.index(eot)] if eot in new else new)


def test_a_sample_depends_on_its_prompt_number_and_seed_alone(model, tokenizer):
    sampling = Sampling(temperature=0.9, top_k=50, top_p=0.95)
    together = continuations(model, tokenizer, [SHORT, LONG, OTHER, SHORT], 30, sampling)
    fewer = continuations(model, tokenizer, [SHORT, OTHER], 30, sampling)
    assert fewer[0] == together[0] != together[3]
    assert continuations(model, tokenizer, [SHORT], 30, sampling, seed=1)[0] != together[0]


def test_control_pieces_and_padding_are_never_sampled(model, tokenizer):
    new = continuations(model, tokenizer, [SHORT] * 8, 200, Sampling(temperature=50.0))
    drawn = set().union(*new)
    assert drawn <= {*range(5, model.config.vocab_size)} and len(drawn) > 300


def test_the_end_of_a_document_ends_a_continuation(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16, n_ctx=8)).eval()
    with torch.no_grad():
        model.blocks[-1].ln_2.weight.zero_()
        model.blocks[-1].ln_2.bias.fill_(1.0)
        model.wte[0] = 30.0  # <pad> would be the likeliest, were it not silent
        model.wte[tokenizer.special_ids["eot"]] = 20.0
    assert continuations(model, tokenizer, [SHORT, OTHER], 5) == [[], []]


def test_top_k_top_p_and_temperature_shape_the_distribution():
    logits_V = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]).log()
    generator = torch.Generator().manual_seed(0)

    def shares(temperature: float, top_k: int, top_p: float) -> dict[int, float]:
        sampling = Sampling(temperature, top_k, top_p)
        drawn = Counter(sampling.choose(logits_V, generator) for _ in range(4000))
        return {token: count / 4000 for token, count in drawn.items()}

    all_five = {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.3, 4: 0.15}
    assert shares(1.0, 0, 1.0) == pytest.approx(all_five, abs=0.03)
    assert shares(1.0, 2, 1.0) == pytest.approx({1: 4 / 7, 3: 3 / 7}, abs=0.03)
    assert shares(1.0, 0, 0.72) == pytest.approx({1: 8 / 17, 3: 6 / 17, 4: 3 / 17}, abs=0.03)
    assert shares(0.5, 2, 1.0) == pytest.approx({1: 0.64, 3: 0.36}, abs=0.03)
    assert shares(1.0, 3, 0.4) == shares(0.0, 0, 1.0) == shares(1e-30, 0, 1.0) == {1: 1.0}


def test_streaming_shows_characters_when_they_are_whole(tokenizer, capsys):
    text, shown = "old \u4f60\u597d mill\u00e9", []
    ids = tokenizer.encode(text)
    assert set(ids) & tokenizer.fallback_ids

    def tokens():
        for token in ids:
            yield 0, token
            shown.append(capsys.readouterr().out)

    generate.stream(tokenizer, [4], tokens())
    assert "".join([*shown, capsys.readouterr().out]) == tokenizer.decode(ids) + "\n" == f"{text}\n"
    assert not any("\ufffd" in part for part in shown)
    assert "\u4f60" in shown and shown.count("") >= 4
    first_byte = next(token for token in ids if token in tokenizer.fallback_ids)
    generate.stream(tokenizer, [4, ids[0]], iter([(0, first_byte)]))
    assert capsys.readouterr().out == "o\ufffd\n"  # an end in the middle of a character shows that


def main(capsys: pytest.CaptureFixture, *words: object) -> str:
    generate.main([str(word) for word in words])
    return capsys.readouterr().out


def test_the_command_continues_the_prompt_and_its_seed_repeats(tiny_run, capsys):
    words = (tiny_run, "--max-new-tokens", 12, "--prompt", "The Old", "--seed")
    first, again, other = (main(capsys, *words, seed) for seed in (1, 1, 2))
    assert first == again != other and first.startswith("the old")
    several = main(capsys, *words, 1, "--num-samples", 2, "--prompt", "A mill")
    parts = several.split("--- ")[1:]
    assert [part.split("\n", 1)[0] for part in parts] == ["1", "2", "3", "4"]
    assert parts[0] == f"1\n{first}" and parts[1] != f"2\n{first}"
    assert parts[3].startswith("4\na mill")
    # Without a prompt it begins a document.
    assert main(capsys, tiny_run, "--max-new-tokens", 5).strip()


def test_prompts_come_from_standard_input(tiny_run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The old\n\nA \xff mill\n")))
    greedy = ("--max-new-tokens", 3, "--temperature", 0)
    out = main(capsys, tiny_run, "--prompt", "-", *greedy)
    assert out.startswith("--- 1\nthe old") and "--- 2\na " in out and "--- 3" not in out
    alone = main(capsys, tiny_run, "--prompt", "The old", *greedy, "--top-p", 0.5)
    assert out.startswith(f"--- 1\n{alone}")


def test_a_user_sees_it_all_on_standard_output(tiny_run):
    words = ("--prompt", "The Old", "--max-new-tokens", 40)
    done = succeed("python", "-m", "gpt1_ds.generate", tiny_run, *words)
    assert done.stdout.startswith("the old") and done.stdout.count("\n") == 1 and not done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "--temperature nan",
        "--temperature -1",
        "--top-k -1",
        "--top-p 0",
        "--top-p 1.5",
        "--max-new-tokens 0",
        "--num-samples 0",
        "--seed -1",
        "--prompt -",
    ],
)
def test_bad_options_are_refused(tiny_run, monkeypatch, words):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(ConfigError, match=words.split()[0]):
        generate.main([str(tiny_run), *words.split()])


@pytest.mark.parametrize("module", ["generate", "eval"])
def test_a_folder_without_checkpoint_is_refused(tmp_path, tiny_shards, module):
    extra = ("--data", tiny_shards) if module == "eval" else ()
    done = run("python", "-m", f"gpt1_ds.{module}", tmp_path, *extra)
    assert done.returncode == 3 and str(tmp_path) in done.stderr and done.stderr.count("\n") == 1


def test_find_prefers_the_newest(tiny_run):
    assert find_checkpoint(tiny_run).name == "step-00000060"
