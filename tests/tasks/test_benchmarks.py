"""BLiMP, LAMBADA and a user's own files: what is read, counted, shown and refused."""

import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt1_ds.base.errors import ConfigError, DataError, UserError
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.likelihood import Likelihoods, log_likelihoods
from gpt1_ds.tasks.benchmarks import open_benchmark
from gpt1_ds.tasks.blimp import read_blimp
from gpt1_ds.tasks.minimal_pairs import accuracy
from tests.support.benchmark_files import NOUNS, PARADIGMS, json_lines, make_benchmarks, pair_rows

N_CTX = 32


@pytest.fixture(scope="module")
def tokenizer(tiny_shards: Path) -> Tokenizer:
    return load_tokenizer(tiny_shards / "tokenizer")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16, n_ctx=N_CTX))
    with torch.no_grad():
        model.wte.mul_(20.0)
    return model.eval()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return make_benchmarks(tmp_path / "zero_shot")


def summed(model: GPT, tokenizer: Tokenizer, before: str, after: str) -> tuple[float, bool]:
    """Log-probability of `after` behind <eot> and `before`, and whether it is the likeliest."""
    ids = [tokenizer.special_ids["eot"], *tokenizer.encode(before)]
    total, greedy = 0.0, True
    for token in tokenizer.encode(after):
        with torch.no_grad():
            _, logits_BV = model(torch.tensor([ids[-N_CTX:]]), logits=True)
        total += logits_BV[0].log_softmax(-1)[token].item()
        greedy &= int(logits_BV[0].argmax()) == token
        ids.append(token)
    return total, greedy


def test_pairs_are_decided_by_the_sums_of_whole_sentences(model, tokenizer, files):
    benchmark = open_benchmark("blimp", files, tokenizer, N_CTX)
    found = log_likelihoods(model, benchmark.queries, "blimp")
    credits: dict[str, list[float]] = {name: [] for name in PARADIGMS}
    nats = []
    for name in sorted(PARADIGMS):
        for row in pair_rows(name):
            good, bad = (
                summed(model, tokenizer, "", row[key])[0]
                for key in ("sentence_good", "sentence_bad")
            )
            nats += [good, bad]
            tie = row["sentence_good"] == row["sentence_bad"]
            credits[name].append(0.5 if tie else float(good > bad))
    np.testing.assert_allclose(found.nats_N, nats, rtol=1e-5)
    means = {name: np.mean(of_group) for name, of_group in credits.items()}
    metrics = benchmark.metrics(found)
    assert metrics["accuracy"] == pytest.approx(np.mean(list(means.values())))
    assert (metrics["pairs"], metrics["ties"]) == (24, 4)
    variances = [np.var(of_group, ddof=1) / 6 for of_group in credits.values()]
    assert metrics["standard_error"] == pytest.approx(math.sqrt(sum(variances)) / 4)
    both = (means["animate_subject_trans"] + means["causative"]) / 2
    assert metrics["phenomenon/argument_structure"] == pytest.approx(both)
    assert metrics["phenomenon/binding"] == pytest.approx(means["principle_A_domain_1"])
    rows = benchmark.table(found).splitlines()
    assert len(rows) == 25 and rows[6].split("\t")[-1] == "0.5"


def test_the_table_stands_beside_the_published_scores_of_the_same_paradigms(tokenizer, files):
    benchmark = open_benchmark("blimp", files / "BLiMP.zip", tokenizer, N_CTX)
    good = np.tile([-1.0, -2.0], 24)
    lines = benchmark.report(Likelihoods(good, np.zeros(48, bool)))
    cells = [re.split(r"  +", line.strip()) for line in lines]
    assert cells[0][-4:] == ["n-gram", "LSTM", "Transformer-XL", "GPT-2"]
    assert cells[1] == ["overall", "100.0 ± 0.0", "24", "41.5", "51.5", "61.5", "71.5"]
    of = {row[0]: row[1:] for row in cells}
    assert of["argument_structure"] == ["100.0 ± 0.0", "12", "41.5", "51.5", "61.5", "71.5"]
    assert of["syntax_semantics"][1:3] == ["6", "43.0"] and of["syntax"][1] == "18"
    assert of["adjunct_island"][1:3] == ["6", "40.0"]
    (note,) = benchmark.notes
    assert (
        "63 of BLiMP's 67 paradigms are missing (wh_island); all means are over the others" in note
    )


def test_a_folder_of_the_unpacked_files_is_the_same(tokenizer, files, tmp_path):
    with zipfile.ZipFile(files / "BLiMP.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    packed = read_blimp(files)
    (tmp_path / "unpacked" / "BLiMP_models_summary.jsonl").write_bytes(
        (files / "BLiMP_models_summary.jsonl").read_bytes()
    )
    (tmp_path / "unpacked" / "data" / "._adjunct_island.jsonl").write_bytes(b"\0\5\x16\7")
    for place in (tmp_path / "unpacked", tmp_path / "unpacked" / "data"):
        assert read_blimp(place)[:3] == packed[:3]
    (tmp_path / "unpacked" / "BLiMP_models_summary.jsonl").unlink()
    assert "no published scores" in read_blimp(tmp_path / "unpacked").notes[0]


def test_a_sample_has_the_same_pairs_of_each_paradigm_each_time(tokenizer, tmp_path):
    folder = make_benchmarks(tmp_path, pairs=40)
    chosen = [open_benchmark("blimp", folder, tokenizer, N_CTX, wanted=5).pairs for _ in range(2)]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 20
    every = open_benchmark("blimp", folder, tokenizer, N_CTX).pairs
    assert set(chosen[0]) < set(every)
    assert {pair.group for pair in chosen[0]} == set(PARADIGMS)
    assert chosen[0] != [pair for place, pair in enumerate(every) if place % 40 < 5]


def test_last_words_are_counted_and_their_perplexity(model, tokenizer, files):
    benchmark = open_benchmark("lambada", files, tokenizer, N_CTX)
    found = log_likelihoods(model, benchmark.queries, "lambada", benchmark.greedy)
    rows = [json.loads(line) for line in (files / "lambada_openai.jsonl").read_text().splitlines()]
    expected = [summed(model, tokenizer, row["context"], row["continuation"]) for row in rows]
    metrics = benchmark.metrics(found)
    assert metrics["accuracy"] == np.mean([greedy for _, greedy in expected])
    nats = np.mean([nats for nats, _ in expected])
    assert metrics["perplexity"] == pytest.approx(math.exp(-nats), rel=1e-4)
    assert benchmark.majority == 1 / len(NOUNS) and not benchmark.notes


def test_a_greedy_answer_has_all_its_tokens(model, tokenizer, tmp_path):
    """The word is what the model continues with; then one of its tokens is another."""
    context, word = "The old miller", "smiled"
    assert len(tokenizer.encode(word)) > 1
    file = json_lines(tmp_path / "own.jsonl", [{"a": context, "b": word}, {"a": word, "b": word}])
    benchmark = open_benchmark("cloze", file, tokenizer, N_CTX, columns=("a", "b"))
    found = log_likelihoods(model, benchmark.queries, "cloze", True)
    likely = Likelihoods(found.nats_N, np.array([True, False]))
    assert benchmark.metrics(likely)["accuracy"] == 0.5
    assert benchmark.table(likely).splitlines()[1].startswith("1\tsmiled\t-")


def test_own_pairs_have_named_columns_and_groups(tokenizer, tmp_path):
    rows = [{"yes": "He sat.", "no": "He sits sat.", "kind": kind} for kind in "aab"]
    file = json_lines(tmp_path / "own.jsonl", rows)
    nats = Likelihoods(np.array([-1, -2, -2, -1, -1, -2.0]), np.zeros(6, bool))
    plain = open_benchmark("pairs", file, tokenizer, N_CTX, columns=("yes", "no"))
    assert plain.metrics(nats)["accuracy"] == pytest.approx(2 / 3)
    grouped = open_benchmark("pairs", file, tokenizer, N_CTX, columns=("yes", "no", "kind"))
    assert grouped.metrics(nats) == {
        "accuracy": 0.75,
        "standard_error": pytest.approx(math.nan, nan_ok=True),
        "pairs": 3,
        "ties": 0,
        "kind/a": 0.5,
        "kind/b": 1.0,
    }
    table = tmp_path / "own.tsv"
    table.write_text("no\tyes\nHe sits sat.\tHe sat.\n")
    assert (
        open_benchmark("pairs", table, tokenizer, N_CTX, columns=("yes", "no")).pairs
        == (plain.pairs[:1])
    )


def test_what_is_too_long_is_left_out_and_counted(model, tokenizer, tmp_path):
    rows = [{"a": "He sat.", "b": "He sit."}, {"a": "He sat. " * 20, "b": "He sit."}]
    file = json_lines(tmp_path / "own.jsonl", rows)
    pairs = open_benchmark("pairs", file, tokenizer, N_CTX, columns=("a", "b"))
    assert len(pairs.pairs) == 1 and len(pairs.queries) == 2
    assert (
        "1 of 2 pairs are left out: they are longer than the model's context of 32"
        in (pairs.notes[0])
    )
    turned = [{"a": row["b"], "b": row["a"]} for row in reversed(rows)]
    file = json_lines(tmp_path / "cloze.jsonl", [*turned, {"a": "He sat. " * 20, "b": "He"}])
    cloze = open_benchmark("cloze", file, tokenizer, N_CTX, columns=("a", "b"))
    assert len(cloze.passages) == 2 and len(cloze.queries[1].ids_T) == N_CTX + 1
    assert ["left out" in note for note in cloze.notes] == [True, False]
    assert "1 of 3 passages are longer than the model's context of 32" in cloze.notes[1]
    assert log_likelihoods(model, cloze.queries, "cloze", True).nats_N.max() < 0


def spoil_zip(folder: Path) -> None:
    content = (folder / "BLiMP.zip").read_bytes()
    (folder / "BLiMP.zip").write_bytes(content[: len(content) // 2])


def spoil_row(folder: Path, text: str) -> None:
    (folder / "BLiMP.zip").unlink()
    (folder / "data").mkdir()
    rows = json_lines(folder / "data" / "causative.jsonl", pair_rows("causative")).read_text()
    (folder / "data" / "causative.jsonl").write_text(rows + text + "\n")


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("blimp", lambda folder: (folder / "BLiMP.zip").unlink(), "no BLiMP here; give BLiMP.zip"),
        ("blimp", spoil_zip, "not a sound BLiMP.zip"),
        ("blimp", lambda folder: spoil_row(folder, "{"), "causative.jsonl row 7: not a JSON"),
        (
            "blimp",
            lambda folder: spoil_row(folder, '{"sentence_good": "a", "worse": "b"}'),
            "causative.jsonl row 7: no column 'sentence_bad'; did you mean 'sentence_good'",
        ),
        (
            "blimp",
            lambda folder: spoil_row(folder, '{"sentence_good": "a", "sentence_bad": " "}'),
            "row 7: column 'sentence_bad' is empty",
        ),
        (
            "blimp",
            lambda folder: (folder / "BLiMP_models_summary.jsonl").write_text("{}\n"),
            "BLiMP_models_summary.jsonl row 1: not the publisher's",
        ),
        ("lambada", lambda folder: (folder / "lambada_openai.jsonl").unlink(), "no lambada"),
        (
            "lambada",
            lambda folder: (folder / "lambada_openai.jsonl").write_text('{"text": "a b"}\n'),
            "row 1: no column 'context'; did you mean 'text'",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(tokenizer, files, name, spoil, says):
    spoil(files)
    with pytest.raises(DataError) as caught:
        open_benchmark(name, files, tokenizer, N_CTX)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "columns", "says"),
    [
        ("pairs", (), "needs --columns"),
        ("pairs", ("context",), "pairs have two columns"),
        ("cloze", ("a", "b", "c"), "a cloze file has two columns"),
        ("pairs", ("context", "word"), "no column 'word'; choose from: context, continuation"),
    ],
)
def test_wrong_columns_are_refused_in_one_line(tokenizer, files, name, columns, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        open_benchmark(name, files / "lambada_openai.jsonl", tokenizer, N_CTX, None, columns)
    assert isinstance(caught.value, DataError if "choose" in says else ConfigError)


def test_a_context_without_room_is_refused(tokenizer, files):
    with pytest.raises(DataError, match="24 of 24 pairs are left out: .* context of 4 tokens"):
        open_benchmark("blimp", files, tokenizer, 4)


def test_the_error_is_that_of_fixed_groups():
    draws = np.random.default_rng(0).random((4000, 3, 50)) < np.array([0.2, 0.5, 0.9])[:, None]
    means = draws.mean((1, 2))
    errors = [accuracy(list(draw.astype(float))).error for draw in draws]
    assert np.mean(errors) == pytest.approx(means.std(), rel=0.03)


def test_the_real_files_are_whole_and_the_published_means_are_those_of_the_paper(shared_data):
    found = read_blimp(shared_data / "zero_shot")
    assert len(found.pairs) == 67_000 and not found.notes
    assert [len(rows) for rows in found.levels.values()] == [12, 4, 67]
    overall = {name: np.mean([*of_model.values()]) for name, of_model in found.published.items()}
    rounded = {name: round(100 * mean, 1) for name, mean in overall.items()}
    assert rounded == {"n-gram": 61.2, "LSTM": 69.8, "Transformer-XL": 69.6, "GPT-2": 83.0}
    lines = (shared_data / "zero_shot" / "BLiMP_models_summary.jsonl").read_text().splitlines()
    for entry in map(json.loads, lines):
        if entry["UID"] != "overall" or entry["linguistics_term"] == "overall":
            continue
        groups = found.levels["phenomenon"][entry["linguistics_term"]]
        mean = np.mean([found.published["GPT-2"][group] for group in groups])
        assert mean == pytest.approx(entry["gpt2"], abs=1e-6)
