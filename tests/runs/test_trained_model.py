"""`gpt1_ds.load`: its methods give what the commands give, in any batches; its errors."""

import ast
import re
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch

import gpt1_ds
from gpt1_ds import eval as evaluate
from gpt1_ds import generate
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.inspection import hidden_states
from gpt1_ds.runs.fine_tuned import load_fine_tuned, outcomes, temperature_of
from gpt1_ds.runs.trained_model import TrainedModel
from tests.conftest import succeed
from tests.support.fine_tuning import save_tuned
from tests.support.task_folders import FOLDERS

TEXTS = ["The old miller went to the river.", "He", "It was a long way home, and dark. " * 2]


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> TrainedModel:
    return gpt1_ds.load(tiny_run)


def test_the_import_is_light_and_its_names_are_known_to_tools():
    code = (
        "import sys, gpt1_ds; assert 'torch' not in sys.modules; print(*dir(gpt1_ds)); "
        "assert not hasattr(gpt1_ds, 'loud'); from gpt1_ds import *; print(gpt1_ds.__version__)"
    )
    names, version = succeed("python", "-c", code).stdout.splitlines()
    assert {"load", "TrainedModel", "Prediction", "__version__"} <= set(names.split())
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_type_checkers_see_what_is_offered():
    """`make lint` runs mypy over the package; it reads the imports under TYPE_CHECKING."""
    root = ast.parse(Path(gpt1_ds.__file__).read_text(encoding="utf-8"))
    (guarded,) = [node for node in root.body if isinstance(node, ast.If)]
    names = {alias.name for node in guarded.body for alias in node.names}
    assert ast.unparse(guarded.test) == "TYPE_CHECKING"
    assert names | {"__version__"} == set(gpt1_ds.__all__)
    assert Path(gpt1_ds.__file__).with_name("py.typed").exists()
    assert get_type_hints(gpt1_ds.load)["return"] is TrainedModel


def test_scores_add_up_to_those_of_the_command(tiny_run, model, sample, capsys, tmp_path):
    path = sorted((sample / "books" / "valid").glob("*.txt"))[0]
    text = path.read_text(encoding="utf-8")[:3000]
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt").write_text(TEXTS[0], encoding="utf-8")
    for stride, words in ((None, []), (8, ["--stride", "8"])):
        evaluate.main([str(tiny_run), "--data", str(tmp_path), *words])
        printed = re.search(r"([\d.]+) ± [\d.]+ nats a token", capsys.readouterr().out)
        nats = np.concatenate(model.token_nats([text, TEXTS[0]], stride))
        assert f"{nats.mean(dtype=float):.4f}" == printed[1]
    means = model.score([text, TEXTS[0]])
    assert means == [nats.mean(dtype=float) for nats in model.token_nats([text, TEXTS[0]])]
    assert len(model.token_nats([text])[0]) == len(model.encode(text)) > 32


def test_logits_and_states_are_those_of_the_model_in_any_batches(model):
    logits, states = model.logits(TEXTS), model.hidden(TEXTS)
    first = model.hidden(TEXTS, 0)
    nats = model.token_nats(TEXTS)
    for size in (1, 2):
        for value, other in zip(logits, model.logits(TEXTS, batch_size=size), strict=True):
            assert torch.allclose(value, other, atol=1e-5)
        for value, other in zip(states, model.hidden(TEXTS, batch_size=size), strict=True):
            assert torch.allclose(value, other, atol=1e-5)
        for value, other in zip(nats, model.token_nats(TEXTS, batch_size=size), strict=True):
            assert value == pytest.approx(other, abs=1e-5)
    for index, text in enumerate(TEXTS):
        ids = [model.tokenizer.special_ids["eot"], *model.encode(text)]
        assert len(logits[index]) == len(states[index]) == len(ids)
        with torch.no_grad():
            x_BTC, last_BV = model.gpt(torch.tensor([ids]), logits=True)
        assert torch.allclose(logits[index][-1], last_BV[0], atol=1e-5)
        assert torch.allclose(states[index], x_BTC[0], atol=1e-5)
        embedded = model.gpt.wte[ids] + model.gpt.wpe[: len(ids)]
        assert torch.allclose(first[index], embedded, atol=1e-6)
        chosen = logits[index].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        assert -chosen.numpy() == pytest.approx(nats[index], abs=1e-5)
        # Ids are taken as they are.
        assert torch.equal(model.logits([ids])[0], model.logits([text])[0])
    assert model.decode(model.encode(TEXTS[0])) == TEXTS[0].lower()
    assert model.score(TEXTS[0]) == pytest.approx(model.score([TEXTS[0]]))


def test_attention_gives_the_output_of_the_model(model):
    weights_BHTT = model.attention(TEXTS, 1)
    lengths = [1 + len(model.encode(text)) for text in TEXTS]
    assert weights_BHTT.shape == (3, 4, max(lengths), max(lengths))
    alone = model.attention(TEXTS, 1, batch_size=1)
    assert torch.allclose(weights_BHTT, alone, atol=1e-5)
    for weights_HTT, text, length in zip(weights_BHTT, TEXTS, lengths, strict=True):
        ids = torch.tensor([[model.tokenizer.special_ids["eot"], *model.encode(text)]])
        assert not weights_HTT[:, length:].any() and not weights_HTT.triu(1).any()
        x_BTC = hidden_states(model.gpt, ids)[1]
        attention = model.gpt.blocks[1].attn
        with torch.no_grad():
            v_THD = attention.c_attn(x_BTC)[0].chunk(3, dim=-1)[2].unflatten(-1, (4, -1))
            out_TC = (weights_HTT[:, :length, :length] @ v_THD.transpose(0, 1)).transpose(0, 1)
            expected_BTC, _ = attention(x_BTC, None, (None, None, None))
            found_TC = attention.c_proj(out_TC.flatten(1))
        assert torch.allclose(found_TC, expected_BTC[0], atol=1e-5)
    assert torch.equal(model.attention(TEXTS, -1), weights_BHTT)
    assert not torch.allclose(model.attention(TEXTS, 0), weights_BHTT)


def test_samples_are_those_of_the_command(tiny_run, model, capsys):
    words = ["--prompt", "The Old", "--prompt", "A mill", "--num-samples", "2", "--seed", "5"]
    generate.main([str(tiny_run), *words, "--max-new-tokens", "9", "--top-p", "0.9"])
    printed = re.split(r"--- \d\n", capsys.readouterr().out)[1:]
    made = model.generate(["The Old", "A mill"], 9, num_samples=2, top_p=0.9, seed=5)
    assert [f"{text}\n" for text in made] == printed
    assert made != model.generate(["The Old", "A mill"], 9, num_samples=2, top_p=0.9, seed=6)
    generate.main([str(tiny_run), "--max-new-tokens", "4"])
    assert model.generate(max_new_tokens=4) == [capsys.readouterr().out.removesuffix("\n")]


OWN_SCORE = {"name": "stsb", "squared_error": True}
PREDICTED = [
    ({"name": "sst2"}, "SST-2/dev.tsv"),
    ({"name": "snli"}, "SNLI/dev.tsv"),
    ({"name": "mrpc"}, "MRPC/msr_paraphrase_test.txt"),
    ({"name": "stsb"}, "STS-B/sts-dev.csv"),
    (OWN_SCORE, "STS-B/sts-dev.csv"),
    ({"name": "race"}, "RACE/dev"),
    ({"name": "storycloze"}, "StoryCloze"),
    ({"name": "wnut17"}, "WNUT17/emerging.dev.conll"),
]


@pytest.mark.parametrize(("task", "data"), PREDICTED, ids=lambda value: str(value))
def test_predictions_are_those_of_the_command(tiny_run, sample, tmp_path, task, data):
    folder = sample / "tasks" / FOLDERS[task["name"]]
    run = save_tuned(tmp_path / "run", tiny_run, data=str(folder), **task)
    tuned = gpt1_ds.load(run)
    examples = tuned.task.read(sample / "tasks" / data, "dev")[:40]
    expected, values = outcomes(load_fine_tuned(run, None), examples)
    given = [example.texts for example in examples]
    if tuned.task.kind == "classification":
        given = [text for (text,) in given]
    predicted = tuned.predict(given)
    shown = [tuned.task.show(label) for label in expected]
    if task["name"] == "stsb":
        assert [each.label for each in predicted] == expected
        tables = [each.probabilities for each in predicted]
        assert tables == [None] * 40 or task != OWN_SCORE
    elif task["name"] == "wnut17":
        assert [" ".join(each.label) for each in predicted] == shown
        assert all(len(each.probabilities) == len(each.label) for each in predicted)
    else:
        assert [each.label for each in predicted] == shown
        assert all(max(p, key=p.get) == label for label, p in predicted)
        for each, value in zip(predicted, values, strict=True):
            assert flat(each) == pytest.approx(value.tolist(), abs=1e-12)
    for size in (1, 7):
        for one, other in zip(predicted, tuned.predict(given, batch_size=size), strict=True):
            assert flat(one) == pytest.approx(flat(other), abs=1e-5)
    for each in predicted:
        for table in tables_of(each):
            assert sum(table.values()) == pytest.approx(1) and set(table) == set(tuned.task.classes)


def test_probabilities_have_the_temperature_of_the_calibration(tiny_run, sample, tmp_path):
    data = sample / "tasks" / "SST-2"
    run = save_tuned(tmp_path / "run", tiny_run, name="sst2", data=str(data))
    before = gpt1_ds.load(run).predict(["a fine film"])
    evaluate.main([str(run), "--calibrate"])
    tuned = load_fine_tuned(run, None)
    temperature = temperature_of(tuned.folder)
    example = tuned.task.from_line("a fine film", "here")
    (value,) = outcomes(tuned, [example], temperature).values
    (after,) = gpt1_ds.load(run).predict(["a fine film"])
    assert temperature != 1 and flat(after) == pytest.approx(value.tolist(), abs=1e-12)
    assert after.label == before[0].label and flat(after) != flat(before[0])


def tables_of(prediction: gpt1_ds.Prediction) -> list[dict[str, float]]:
    found = prediction.probabilities
    return found if isinstance(found, list) else [found] * (found is not None)


def flat(prediction: gpt1_ds.Prediction) -> list[float]:
    values = [value for table in tables_of(prediction) for value in table.values()]
    return values or [prediction.label]


def test_what_predict_takes_and_what_it_refuses(tiny_run, tmp_path):
    cloze = gpt1_ds.load(save_tuned(tmp_path / "a", tiny_run, name="storycloze", data="x"))
    context, answers = "He ran home.", ("He slept.", "He flew.")
    assert cloze.predict([(context, *answers)]) == cloze.predict([(context, "", *answers)])
    tags = gpt1_ds.load(save_tuned(tmp_path / "b", tiny_run, name="wnut17", data="x"))
    assert tags.predict("Anna met Tom") == tags.predict([["Anna", "met", "Tom"]])
    assert [len(each.label) for each in tags.predict(["Anna met \u200b", ["Anna met", "Tom"]])] == [
        3,
        2,
    ]
    pairs = gpt1_ds.load(save_tuned(tmp_path / "c", tiny_run, name="snli", data="x"))
    assert pairs.predict([]) == [] and "entailment" in repr(pairs)
    with pytest.raises(ConfigError, match=r"inputs\[0\] has 1 text; give a tuple \(premise, hypo"):
        pairs.predict(["one text"])
    with pytest.raises(ConfigError, match=r"inputs\[1\] is 3; give a tuple"):
        pairs.predict([("a", "b"), 3])
    with pytest.raises(ConfigError, match=r"inputs\[0\] has 5 texts; give a tuple of the context"):
        cloze.predict([("a", "b", "c", "d", "e")])
    # The decoder of a fine-tuned run is a language model too.
    assert len(pairs.score(TEXTS)) == 3 and len(pairs.generate(["The"], 3)) == 1


CALLS = [
    (lambda model: model.predict(["a"]), "a pre-training run, which has no task to predict"),
    (lambda model: model.score(["a", ""]), r"texts\[1\] has no tokens to score"),
    (lambda model: model.score(["a"], stride=33), "stride is 33; it must be at most 32"),
    (lambda model: model.score(["a"], batch_size=0), "batch_size is 0; it must be above 0"),
    (lambda model: model.logits(["a "] * 2 + ["a " * 40]), r"texts\[2\] has \d+ tokens"),
    (lambda model: model.logits([3]), r"texts\[0\] is 3; give a text, or a list of token ids"),
    (lambda model: model.logits([[1, 512]]), r"texts\[0\] has the id 512; ids are 0 to 511"),
    (lambda model: model.logits([[]]), r"texts\[0\] has no ids"),
    (lambda model: model.hidden(["a"], 3), "layer is 3; .* has 0 to 2, or -1 for the last"),
    (lambda model: model.attention(["a"], 2), "layer is 2; .* has 0 to 1"),
    (lambda model: model.generate(["a"], 0), "max_new_tokens is 0; it must be above 0"),
    (lambda model: model.generate(["a"], temperature=-1), "temperature is -1"),
    (lambda model: model.generate(["a"], top_p=0), "top_p is 0"),
    (lambda model: gpt1_ds.load(model.folder, dtype="int8"), "dtype is int8; choose from: bf"),
    (lambda model: gpt1_ds.load(model.folder, dtype="float3"), "did you mean 'float32'"),
    (lambda model: gpt1_ds.load(model.folder, device="tpu9"), "device is tpu9: .*give cpu, cuda"),
    (lambda model: gpt1_ds.load(model.folder, device="cuda:7"), "device is cuda:7: "),
]


@pytest.mark.parametrize(("call", "says"), CALLS, ids=[says[:20] for _, says in CALLS])
def test_wrong_arguments_are_one_line(model, call, says):
    with pytest.raises(ConfigError, match=says) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path, tiny_run):
    with pytest.raises(DataError, match="no checkpoint here; give a run folder"):
        gpt1_ds.load(tmp_path)
    assert gpt1_ds.load(str(tiny_run)).score(["a"]) == gpt1_ds.load(tiny_run).score(["a"])


def test_types_of_numbers_and_kinds_of_models(model, tiny_run):
    half = gpt1_ds.load(tiny_run, device="cpu", dtype="bf16")
    assert half.gpt.wte.dtype == torch.bfloat16 and "bfloat16 on cpu" in repr(half)
    assert half.score(TEXTS) == pytest.approx(model.score(TEXTS), rel=0.05)
    assert half.logits(["a"])[0].dtype == half.attention(["a"]).dtype == torch.float32
    assert len(half.generate(["The"], 4)) == 1
    lstm = GPT(GPTConfig(512, n_layer=1, n_embd=32, n_ctx=16, kind="lstm")).eval()
    other = TrainedModel(lstm, model.tokenizer, Path("runs/lstm"), None, None)
    assert len(other.hidden(["a"], 0)) == len(other.score(["a"])) == 1
    with pytest.raises(ConfigError, match="runs/lstm: an LSTM has no attention"):
        other.attention(["a"])
