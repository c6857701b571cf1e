"""The evaluation command on shards and on text: its figures and its errors."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt1_ds import eval as evaluate
from gpt1_ds.base.errors import UserError
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.model.perplexity import token_nll
from gpt1_ds.runs.trained import load_gpt, run_tokenizer
from tests.conftest import run
from tests.support.benchmark_files import make_benchmarks

TEXTS = {
    "a.txt": "The old miller went to the river.\nHe was\tglad.\n",
    "b.txt": "\ufeffA caf\u00e9 \u4f60\r\n\r\nsank.  \n",
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for name, text in {**TEXTS, "empty.txt": "", "other.md": "not read"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return tmp_path


def figures(capsys: pytest.CaptureFixture, *words: object) -> dict[str, tuple[float, float, str]]:
    """What the command prints: mean, standard error and the counts behind them, by the row's
    title."""
    evaluate.main([str(word) for word in words])
    rows = re.findall(r"(?m)^  ([a-z ]+?) +([\d.]+) ± ([\d.]+|nan), (.*)$", capsys.readouterr().out)
    return {title: (float(mean), float(error), counted) for title, mean, error, counted in rows}


def test_shards_are_scored_as_in_training_and_counted_as_they_were_built(
    tiny_run, tiny_shards, sample, capsys
):
    rows = figures(capsys, tiny_run, "--data", tiny_shards, "--corpus", "books")
    losses = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    logged = [line["loss"] for line in losses if line["split"] == "valid"][-1]
    assert math.log(rows["token perplexity"][0]) == pytest.approx(
        logged, rel=5e-3
    )  # bf16 weights there, float32 here
    entry = read_manifest(tiny_shards).splits["valid"]["books"]
    files = [
        path.read_text(encoding="utf-8")
        for path in sorted((sample / "books" / "valid").glob("*.txt"))
    ]
    words, text_bytes = (
        sum(map(len, parts)) for parts in (map(str.split, files), map(str.encode, files))
    )
    assert rows["token perplexity"][2] == f"{entry.tokens - 1:,} tokens"
    assert rows["word perplexity"][2] == f"{words:,} words and {entry.documents:,} ends"
    counted = int(rows["bits per byte"][2].split()[0].replace(",", ""))
    assert 0.98 * text_bytes < counted <= text_bytes  # hard-wrapped lines and blank ones joined


@pytest.mark.parametrize("lines", [False, True], ids=["files", "lines"])
def test_figures_of_a_folder_of_text(tiny_run, texts, capsys, lines):
    rows = figures(capsys, tiny_run, "--data", texts, *["--lines"] * lines)
    model, state, folder = load_gpt(tiny_run)
    tokenizer = run_tokenizer(folder, state)
    raw = [text.removeprefix("\ufeff") for text in TEXTS.values()]
    eot = [tokenizer.special_ids["eot"]]
    parts = [line for text in raw for line in text.splitlines() if line] if lines else raw
    documents = [np.array(eot + tokenizer.encode(part) + eot * lines) for part in parts]
    nll_D = [
        token_nll(model, [ids_T], model.config.n_ctx, "").sum(dtype=float) for ids_T in documents
    ]
    tokens, ends = sum(map(len, documents)) - len(documents), 4 if lines else 0
    words, size = 14, sum(len(text.encode()) for text in raw)
    assert rows["token perplexity"][0] == pytest.approx(math.exp(sum(nll_D) / tokens), abs=1e-3)
    assert rows["word perplexity"][0] == pytest.approx(
        math.exp(sum(nll_D) / (words + ends)), rel=1e-5
    )
    assert rows["bits per byte"][0] == pytest.approx(sum(nll_D) / size / math.log(2), abs=1e-4)
    counts = [counted for _, _, counted in rows.values()]
    assert counts == [f"{tokens} tokens", f"{words} words and {ends} ends", f"{size} bytes"]
    if lines:  # each document is shorter than the context: one draw each
        residuals = [
            nll - sum(nll_D) * (len(ids) - 1) / tokens
            for nll, ids in zip(nll_D, documents, strict=True)
        ]
        error = math.sqrt(sum(r * r for r in residuals) * 4 / 3) / size / math.log(2)
        assert rows["bits per byte"][1] == pytest.approx(error, abs=1e-4)


def test_a_smaller_stride_gives_each_token_the_context_of_its_window(tiny_run, tiny_shards, capsys):
    model, _, _ = load_gpt(tiny_run)
    ids_T = np.arange(75) * 7 % model.config.vocab_size
    expected = []
    for place in range(1, 75):
        end = min(
            74, 32 + 8 * math.ceil(max(0, place - 32) / 8)
        )  # the first window is full, each later one 8 further
        with torch.no_grad():
            _, logits_BV = model(
                torch.from_numpy(ids_T[max(0, end - 32) : place])[None], logits=True
            )
        expected.append(-logits_BV.log_softmax(-1)[0, ids_T[place]].item())
    assert token_nll(model, [ids_T], 8, "") == pytest.approx(np.array(expected), abs=1e-4)
    figures_of = [
        figures(capsys, tiny_run, "--data", tiny_shards, "--stride", stride) for stride in (32, 8)
    ]
    assert figures_of[0] == figures(capsys, tiny_run, "--data", tiny_shards) != figures_of[1]


def test_one_file_alone_has_no_standard_error(tiny_run, texts, capsys):
    rows = figures(capsys, tiny_run, "--data", texts / "b.txt")
    assert all(math.isnan(error) for _, error, _ in rows.values())


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        ("--data {}/absent.txt", 3, "absent.txt"),
        ("--data {}/empty.txt", 3, "holds no text"),
        ("--data {}/binary", 3, "not UTF-8"),
        ("--data {}/zeros", 3, "binary"),
        ("--data {}/folder", 3, "holds no text"),
        ("--data {}/a.txt --stride 0", 2, "--stride 0: must be 1 to 32"),
        ("--data {}/a.txt --stride 33", 2, "--stride 33: must be 1 to 32"),
        ("--data {}/a.txt --corpus books", 2, "--corpus does not go with"),
        ("--data {shards} --lines", 2, "--lines does not go with"),
        ("--data {shards} --corpus boks", 3, "did you mean 'books'"),
        ("--data {other}", 3, "another tokenizer"),
        ("--data {bare}", 3, "no tokens in the validation split"),
    ],
)
def test_bad_input_is_refused_in_one_line(tiny_run, tiny_shards, texts, words, exit_code, says):
    (texts / "binary").write_bytes(bytes(range(256)))
    (texts / "zeros").write_bytes(bytes(512))
    (texts / "folder").mkdir()
    manifest = json.loads((tiny_shards / "manifest.json").read_text())
    shards = {"shards": tiny_shards, "other": texts / "other", "bare": texts / "bare"}
    for folder in ("other", "bare"):
        if folder == "bare":
            manifest["splits"]["valid"] = {}
        shards[folder].mkdir()
        changed = manifest["tokenizer"] | ({"sha256": "0" * 64} if folder == "other" else {})
        (shards[folder] / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": changed}))
    with pytest.raises(UserError) as caught:
        evaluate.main([str(tiny_run), *words.format(texts, **shards).split()])
    assert (
        caught.value.exit_code == exit_code
        and says in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_the_command_exits_with_the_errors_code(tiny_run, texts):
    done = run("python", "-m", "gpt1_ds.eval", tiny_run, "--data", texts / "absent.txt")
    assert (
        done.returncode == 3
        and done.stderr.startswith("error: --data")
        and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("lines", [False, True], ids=["files", "lines"])
def test_the_surprisals_of_all_words_add_up_to_the_perplexity(tiny_run, texts, capsys, lines):
    out = texts / "out.tsv"
    words = [tiny_run, "--data", texts, "--stride", 8, "--surprisal", out, *["--lines"] * lines]
    rows = figures(capsys, *words)
    header, *table = [line.split("\t") for line in out.read_text("utf-8").splitlines()]
    assert header == ["document", "word", "place", "surprisal"]
    nats, tokens = (
        math.log(rows["token perplexity"][0]),
        int(rows["token perplexity"][2].split()[0]),
    )
    assert sum(float(row[3]) for row in table) == pytest.approx(nats * tokens, rel=1e-5)
    named = [row for row in table if row[2]]
    assert [row[1] for row in named] == "".join(TEXTS.values()).replace("\ufeff", "").split()
    assert len(table) - len(named) == (4 if lines else 0), "the ends of documents"
    first = {name: [row[2] for row in named if row[0] == name] for name in ("a.txt", "b.txt")}
    if lines:
        assert {row[0] for row in table} == {"a.txt:1", "a.txt:2", "b.txt:1", "b.txt:3"}
    else:
        assert first == {"a.txt": [*"12345678910"[:9], "10"], "b.txt": ["1", "2", "3", "4"]}


def test_zero_shot_benchmarks_are_scored_and_sampled(tiny_run, tmp_path, capsys):
    data = make_benchmarks(tmp_path / "zero_shot", pairs=8)
    out = tmp_path / "pairs.tsv"
    words = [str(tiny_run), "--zero-shot", "blimp", "--data", str(data)]
    evaluate.main([*words, "--sample", "5", "--out", str(out)])
    shown = capsys.readouterr().out
    assert "zero-shot blimp: 20 pairs" in shown and "GPT-2" in shown and "by paradigm:" in shown
    assert len(out.read_text().splitlines()) == 21
    evaluate.main([str(tiny_run), "--zero-shot", "lambada", "--data", str(data)])
    assert re.search(r"last word, greedy +[\d.]+ ± [\d.]+ x 100, 6 ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        ("--zero-shot blimp --data {}/absent", 3, "absent: not there"),
        ("--zero-shot blimp --data {}", 3, "no BLiMP here"),
        ("--zero-shot blmp --data {}", 2, "did you mean 'blimp'"),
        ("--zero-shot blimp", 2, "--data is not set"),
        ("--zero-shot pairs --data {}/a.txt", 2, "needs --columns"),
        ("--zero-shot pairs --data {}/a.txt --columns a b", 3, "a.txt row 1: no column 'a'"),
        ("--zero-shot blimp --data {} --columns a b", 2, "--columns does not go with"),
        ("--zero-shot race --data {} --sample 5", 2, "--sample does not go with"),
        ("--zero-shot blimp --data {} --sample 0", 2, "--sample is 0; it must be above 0"),
        ("--data {}/a.txt --sample 5", 2, "--sample does not go with --text"),
        ("--data {shards} --surprisal {}/s.tsv", 2, "--surprisal does not go with"),
        ("--data {}/control.txt --surprisal {}/s.tsv", 3, "alone it has other tokens"),
    ],
)
def test_bad_input_of_benchmarks_is_refused_in_one_line(
    tiny_run, tiny_shards, texts, words, exit_code, says
):
    (texts / "control.txt").write_text("He sa\x0bt down.")
    with pytest.raises(UserError) as caught:
        evaluate.main([str(tiny_run), *words.format(texts, texts, shards=tiny_shards).split()])
    assert caught.value.exit_code == exit_code and says in str(caught.value)
