"""Rows end at line feeds and words at spaces, whatever else a text holds; nothing is lost."""

import json
from pathlib import Path

import pytest

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import IGNORE, TASKS, Example, Task, build_task
from gpt1_ds.tasks.splits import vanished_texts
from tests.support.fine_tuning import TINY, arguments, logged

ODD = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""What str.splitlines takes for the end of a line."""
SPACES = "\u00a0\u2007\u202f\u3000\u2581\u200b\u1680"
"""Spaces that separate no words, SentencePiece's mark, and a space of no width."""
TEXTS = [f"a{sign}b" for sign in ODD + SPACES] + ["nul \0 byte", "x" * 200_000, "cr \r inside"]
TEXT = {"kind": "classification", "columns": ["text", "label"], "labels": ["0", "1"]}
WORDS = {"kind": "token_classification", "columns": ["text", "label"], "labels": ["NUM"]}


def own(keys: dict) -> Task:
    return build_task(TaskConfig(name="mine", **keys))


def written(path: Path, texts: list[str]) -> None:
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(texts)]
    if path.suffix == ".tsv":
        lines = ["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in rows)]
    elif path.suffix == ".csv":
        lines = ["text,label", *(f'"{row["text"]}",{row["label"]}' for row in rows)]
    else:
        lines = [json.dumps(row, ensure_ascii=path.suffix == ".json") for row in rows]
    text = f"[{','.join(lines)}]" if path.suffix == ".json" else "\n".join(lines)
    path.write_bytes(text.encode())


@pytest.mark.parametrize("before", ["", "\ufeff", "\n \n", "\ufeff\r\n"])
@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "json"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_text_comes_back_from_every_format(
    tmp_path: Path, ending: str, before: str, line_end: str
):
    texts = TEXTS
    path = tmp_path / f"train.{ending}"
    written(path, texts)
    content = path.read_bytes().decode().replace("\n", line_end)
    path.write_bytes((before + content).encode())
    assert own(TEXT).read(path, "train") == [
        Example((text,), n % 2) for n, text in enumerate(texts)
    ]


def test_a_csv_of_old_spreadsheets_ends_its_rows_with_carriage_returns(tmp_path: Path):
    for name, comma in (("train.csv", ","), ("train.tsv", "\t")):
        text = f"text{comma}label\rone{comma}0\rtwo{comma}1\r"
        (tmp_path / name).write_bytes(text.encode())
        found = own(TEXT).read(tmp_path / name, "train")
        assert found == [Example(("one",), 0), Example(("two",), 1)]


BAD = {
    "a half character": ("t.jsonl", '{"text": "\\ud83d", "label": 0}', r"row 1: \\ud83d is half"),
    "in an array": ("t.json", '[{"text": "x\\udc00", "label": 0}]', r"row 1: \\udc00 is half"),
    "in a label": ("t.jsonl", '{"text": "x", "label": "\\ud83d"}', "row 1: .* is half"),
    "no object": ("t.json", '[{"text": "x", "label": 0}, 7]', "row 2: not a JSON array of objects"),
    "arrays a line": ("t.jsonl", '["x", 0]\n["y", 1]', "not a JSON array of objects"),
    "a table": ("t.jsonl", "text\tlabel\nx\t1\n", "row 1: not a JSON object"),
    "deep": ("t.jsonl", "[" * 100_000, "not a JSON array of objects"),
    "twice": ("t.tsv", "text\ttext\tlabel\nx\ty\t1\n", "row 1: column 'text' occurs twice"),
    "bare return": ("t.csv", "text,label\nx\ry,1\n", "row 2: .*; put the field .* into quotes"),
    "UTF-16": ("t.tsv", b"\xff\xfet\0e\0", "not UTF-8 after row 0"),
    "another label": ("t.csv", "text,label\nx,2\n", "row 2: unknown label '2'; choose from: 0, 1"),
    "true": ("t.jsonl", '{"text": "x", "label": true}', "row 1: unknown label 'true'; choose"),
    "no header": ("t.csv", "x,0\ny,1\n", "row 1: no column 'text' in the header"),
    "blank lines": ("t.jsonl", "\n\n", "no train examples"),
    "nothing": ("t.json", "[]", "no train examples"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line_with_file_and_row(tmp_path: Path, case: str):
    name, text, words = BAD[case]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"{name}.*{words}") as error:
        own(TEXT).read(tmp_path / name, "train")
    assert "\n" not in str(error.value)
    str(error.value).encode()


def test_a_half_character_of_a_passage(tmp_path: Path):
    page = {"article": "x\ud800", "questions": ["q"], "options": [list("abcd")], "answers": ["A"]}
    (tmp_path / "1.txt").write_text(json.dumps(page))
    with pytest.raises(DataError, match=r"1.txt: \\ud800 is half a character"):
        TASKS["race"].read(tmp_path / "1.txt", "train")
    (tmp_path / "1.txt").write_text(json.dumps(page | {"article": 7}))
    with pytest.raises(DataError, match="1.txt: not a RACE passage"):
        TASKS["race"].read(tmp_path / "1.txt", "train")


ODD_WORDS = tuple(f"10{sign}000" for sign in (ODD + SPACES).replace("\n", "")) + tuple(SPACES)
TAGS = ("B-NUM", "O") * (len(ODD_WORDS) // 2) + ("O",) * (len(ODD_WORDS) % 2)


@pytest.mark.parametrize(
    "name", ["t.conll", "tabs.conll", "t.bio", "t.txt", "t.jsonl", "t.json", "t.tsv"]
)
def test_a_word_with_an_odd_space_is_one_word_with_its_tag(tmp_path: Path, name: str):
    path = tmp_path / name
    rows = list(zip(ODD_WORDS, TAGS, strict=True))
    item = {"text": ODD_WORDS, "label": TAGS}
    if path.suffix == ".tsv":
        text = f"text\tlabel\n{' '.join(ODD_WORDS)}\t{' '.join(TAGS)}\n"
    elif path.suffix in (".jsonl", ".json"):
        text = json.dumps([item] if path.suffix == ".json" else item)
    else:
        between = "\t" if name.startswith("tabs") else "  X "
        text = "".join(f"{word}{between}{tag}\r\n" for word, tag in rows) + "\r\n"
    path.write_bytes(text.encode())
    assert own(WORDS).read(path, "train") == [Example(ODD_WORDS, TAGS)]
    if path.suffix in (".conll", ".bio"):
        path.write_text("".join(f"{word}\n" for word in ("in", *ODD_WORDS)))
        assert own(WORDS).read(path, "test") == [Example(("in", *ODD_WORDS))]
    assert own(WORDS).from_line(" ".join(ODD_WORDS), "x") == Example(ODD_WORDS)


def test_words_of_a_json_list_are_kept_as_they_are(tmp_path: Path):
    words = ["New York", "", "\u2581", "x\ty"]
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"text": words, "label": ["B-NUM", "O", "O", "O"]})
    )
    [example] = own(WORDS).read(tmp_path / "t.jsonl", "train")
    assert example == Example(tuple(words), ("B-NUM", "O", "O", "O"))


NOTHING = ("\u2581", "\u200b", "\u2581\u2581", "\u00ad")
"""Texts that the tokenizer turns into no token."""


def test_words_without_a_token_keep_their_place(tiny_shards: Path):
    """They add no target, are predicted as O, and are counted."""
    tokenizer = load_tokenizer(tiny_shards / "tokenizer")
    task = own(WORDS)
    nothing = [word for word in NOTHING if not tokenizer.encode(word)]
    assert "\u2581" in nothing and "\u200b" in nothing
    words = ("in", *nothing, "10", *nothing)
    tags = ("O", *["B-NUM"] * len(nothing), "B-NUM", *["O"] * len(nothing))
    [encoded] = task.encode([Example(words, tags)], tokenizer, 64)
    places = [place for place in encoded.words if place >= 0]
    assert [n for n, place in enumerate(encoded.words) if place >= 0] == [0, len(nothing) + 1]
    assert [encoded.target[place] for place in places] == [0, 1]
    assert sum(target != IGNORE for target in encoded.target) == 2
    assert encoded.vanished == 2 * len(nothing)
    best = [1] * len(encoded.target)
    expected = ["B-NUM", *["O"] * len(nothing), "B-NUM", *["O"] * len(nothing)]
    assert task.predict(best, encoded) == expected
    [line] = vanished_texts({"train": [encoded]})
    assert (
        line
        == f"train: the tokenizer has no token for {2 * len(nothing)} words (each predicted as O)"
    )


@pytest.mark.parametrize("name", ["sst2", "rte", "stsb", "mrpc", "race", "storycloze", "wnut17"])
def test_every_kind_takes_a_text_without_a_token(tiny_shards: Path, name: str):
    tokenizer = load_tokenizer(tiny_shards / "tokenizer")
    task = TASKS[name]
    count = 3 if name == "wnut17" else task.n_texts
    examples = [
        Example(("\u2581",) * count),
        Example(("",) * count),
        Example(("a \u2581 b",) * count),
    ]
    encoded = task.encode(examples, tokenizer, 64)
    assert [example.vanished for example in encoded] == [count, 0, 0]
    controls = {tokenizer.special_ids[name] for name in ("s", "e", "delim")}
    for sequence in [sequence for example in encoded[:2] for sequence in example.sequences]:
        assert set(sequence) <= controls and sequence[-1] == tokenizer.special_ids["e"]


def test_a_step_without_a_labelled_word_adds_nothing(ranks, tiny_shards: Path, tmp_path: Path):
    """2 ranks; 2 of 8 sentences have a word that the tokenizer knows, so most steps have none."""
    nothing = ["\u200b" + "\u2581" * n + "\tO\n\n" for n in range(6)]
    (tmp_path / "train.conll").write_text("".join(["in\tB-NUM\n\n", *nothing, "of\tO\n\n"]))
    (tmp_path / "dev.conll").write_text("to\tO\nby\tB-NUM\n\n\u200b\tB-NUM\n\n")
    argv = arguments(
        tmp_path,
        "zero0_fp32",
        *TINY,
        *("run.name=words", "task.name=words", "task.kind=token_classification"),
        *("task.columns=[text,label]", "task.labels=[NUM]", f"task.data={tmp_path}"),
        *("init.checkpoint=none", f"data.shards={tiny_shards}"),
        *("train.global_batch=2", "train.epochs=1", "train.micro_batch=1"),
    )
    ranks(2).run("gpt1_ds.finetune:main", argv)
    losses = [record["task_loss"] for record in logged(tmp_path / "words", "train")]
    assert len(losses) == 4 and losses.count(0.0) >= 2 and max(losses) > 0.1
    predicted = (tmp_path / "words" / "predictions-dev.tsv").read_text().split("\n")
    assert predicted[2] == "1\tB-NUM\tO"
