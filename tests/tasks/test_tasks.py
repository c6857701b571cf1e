"""Readers on publishers' files and on broken ones; sequences and truncation of every kind."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import IGNORE, TASKS, Example, build_task
from gpt1_ds.tasks.base import fit, pair
from gpt1_ds.tasks.scores import scores_by_part
from tests.support.task_folders import FOLDERS

# Examples of the real files, as their README counts them.
REAL_COUNTS = {
    "cola": (8551, 527),
    "sst2": (67349, 872),
    "rte": (2490, 277),
    "qnli": (4463, 1000),
    "snli": (1666, 9842),
    "stsb": (5749, 1500),
    "qqp": (20996, 2500),
    "wnut17": (3394, 1009),
}
SPECIAL = {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}


@pytest.fixture(scope="session")
def tokenizer(tiny_shards: Path) -> Tokenizer:
    return load_tokenizer(tiny_shards / "tokenizer")


@pytest.mark.parametrize("name", REAL_COUNTS)
def test_reads_every_row_of_the_real_files(shared_data: Path, name: str):
    counts = tuple(
        len(TASKS[name].read(shared_data / "tasks" / FOLDERS[name], split))
        for split in ("train", "dev")
    )
    assert counts == REAL_COUNTS[name]


def test_race_counts_questions(shared_data: Path):
    folder = shared_data / "tasks" / "RACE"
    for split in ("train", "dev"):
        passages = [
            json.loads(path.read_text())
            for path in sorted((folder / split / "middle").glob("*.txt"))
        ]
        examples = TASKS["race"].read(folder, split)
        assert [example.texts[1] for example in examples] == [
            q.strip("\n") for p in passages for q in p["questions"]
        ]
        assert all(len(example.texts) == 6 for example in examples)


@pytest.mark.parametrize("below", ["dev", "dev/high", "."])
def test_race_tells_its_levels_apart(tmp_path: Path, below: str):
    """RACE-m and RACE-h are scored beside RACE, as in Table 3, whichever folder is given."""
    page = {
        "article": "x",
        "questions": ["p", "q"],
        "options": [["a", "b", "c", "d"]] * 2,
        "answers": ["A", "B"],
    }
    for level, count in (("middle", 1), ("high", 2)):
        (tmp_path / "dev" / level).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "dev" / level / f"{number}.txt").write_text(json.dumps(page))
    examples = TASKS["race"].read(tmp_path / below, "dev")
    parts, gold = [example.part for example in examples], [example.label for example in examples]
    assert parts == ["high"] * 4 + ["middle"] * 2 * (below != "dev/high")
    found = scores_by_part(
        ("accuracy",), "dev", parts, gold, [0] * 4 + [1, 1] * (below != "dev/high")
    )
    middle = {} if below == "dev/high" else {"dev_middle": {"accuracy": 0.5}}
    assert found == {"dev_high": {"accuracy": 0.5}} | middle
    assert scores_by_part(("accuracy",), "dev", [""] * 6, [0] * 6, [0] * 6) == {}


def test_mrpc_dev_is_cut_from_train_by_hash(shared_data: Path):
    folder = shared_data / "tasks" / "MRPC"
    train, dev = (TASKS["mrpc"].read(folder, split) for split in ("train", "dev"))
    assert len(train) + len(dev) == 4076 and 300 < len(dev) < 500
    assert not set(train) & set(dev)
    first = next(example for example in [*train, *dev] if example.texts[0].startswith("Amrozi"))
    assert first.texts[0].startswith('Amrozi accused his brother, whom he called "the witness", of')
    assert {example.label for example in dev} == {0, 1}


@pytest.mark.parametrize("name", FOLDERS)
def test_reads_the_embedded_sample(sample: Path, tokenizer: Tokenizer, name: str):
    task = TASKS[name]
    for split in ("train", "dev"):
        examples = task.read(sample / "tasks" / FOLDERS[name], split)
        encoded = task.encode(examples, tokenizer, n_ctx=128)
        assert len(encoded) == len(examples) >= 20
        assert len({task.show(example.label) for example in examples}) > 1
        assert max(example.length for example in encoded) <= 128


GOOD = {
    "cola": ("train.tsv", "gj04\t1\t\tIt works.\n"),
    "sst2": ("train.tsv", "sentence\tlabel\nfine film\t1\n"),
    "rte": ("train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta b\tc\tentailment\n"),
    "qnli": ("train.tsv", "index\tquestion\tsentence\tlabel\n0\twho?\tme\tnot_entailment\n"),
    "snli": ("train_small.tsv", "sentence1\tsentence2\tgold_label\na\tb\tneutral\n"),
    "stsb": ("sts-train.csv", 'g\tf\ty\t1\t2.400\ta "quote\tb\textra\n'),
    "snli jsonl": (
        "snli_1.0_train.jsonl",
        '{"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}\n',
    ),
    "mnli": (
        "train.tsv",
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n0\tx\ta\tb\tneutral\tneutral\n",
    ),
    "mnli txt": (
        "multinli_1.0_train.txt",
        "gold_label\tsentence1\tsentence2\nneutral\ta\tb\n-\tc\td\n",
    ),
    "scitail": ("scitail_1.0_train.tsv", 'a "q\tb\tentails\n'),
    "scitail jsonl": (
        "scitail_1.0_train.txt",
        '{"sentence1": "a \\"q", "sentence2": "b", "gold_label": "entailment"}\n',
    ),
    "wnli": ("train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n"),
    "mrpc": (
        "msr_paraphrase_train.txt",
        'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t"a\tb\n',
    ),
    "stsb glue": (
        "train.tsv",
        'index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta "quote\tb\t2.4\n',
    ),
    "qqp": ("train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n"),
    "storycloze": (
        "train.csv",
        (
            "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
            "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
            'x,One.,Two.,"Three, with a comma.",Four.,Good.,Bad.,2\n'
        ),
    ),
    "conll2003": (
        "eng.train",
        "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nRome NNP I-NP I-LOC\nOslo NNP I-NP B-LOC\n",
    ),
    "wnut17": ("wnut17train.conll", "-DOCSTART-\tO\n\nin\tO\nRome\tB-location\n\t\nyes\tO\n"),
}
EXPECTED = {
    "cola": [Example(("It works.",), 1)],
    "sst2": [Example(("fine film",), 1)],
    "rte": [Example(("a b", "c"), 1)],
    "qnli": [Example(("who?", "me"), 0)],
    "snli": [Example(("a", "b"), 1)],
    "stsb": [Example(('a "quote', "b"), 2.4)],
    "snli jsonl": [Example(("a", "b"), 1)],
    "mnli": [Example(("a", "b"), 1)],
    "mnli txt": [Example(("a", "b"), 1)],
    "scitail": [Example(('a "q', "b"), 1)],
    "scitail jsonl": [Example(('a "q', "b"), 1)],
    "wnli": [Example(("a", "b"), 1)],
    "mrpc": [Example(('"a', "b"), 1)],
    "stsb glue": [Example(('a "quote', "b"), 2.4)],
    "qqp": [Example(("a", "b"), 0)],
    "storycloze": [Example(("One. Two. Three, with a comma. Four.", "", "Good.", "Bad."), 1)],
    "conll2003": [Example(("U.N.", "Rome", "Oslo"), ("B-ORG", "B-LOC", "B-LOC"))],
    "wnut17": [Example(("in", "Rome"), ("O", "B-location")), Example(("yes",), ("O",))],
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "spoil", ["as published", "BOM", "CRLF", "no last line end", "blank lines"]
)
def test_reads_a_file_however_it_was_saved(tmp_path: Path, name: str, spoil: str):
    file, text = GOOD[name]
    data = {
        "BOM": "\ufeff" + text,
        "CRLF": text.replace("\n", "\r\n"),
        "no last line end": text.rstrip("\n"),
        "blank lines": text + "\n\n",
    }.get(spoil, text)
    (tmp_path / file).write_bytes(data.encode())
    assert TASKS[name.split()[0]].read(tmp_path / file, "train") == EXPECTED[name]


BROKEN = {
    "unknown label": (
        "sst2",
        "fine film\t1",
        "fine film\tgood",
        ("row 2", "unknown label 'good'", "0, 1"),
    ),
    "missing column": ("sst2", "sentence\tlabel", "text\tlabel", ("row 1", "no column 'sentence'")),
    "empty field": ("sst2", "fine film\t1", " \t1", ("row 2", "column 'sentence' is empty")),
    "wrong delimiter": (
        "sst2",
        "sentence\tlabel",
        "sentence,label",
        ("row 1", "column 'label': no label"),
    ),
    "too few columns": ("rte", "0\ta b\tc", "a b\tc", ("row 2", "3 columns, expected 4")),
    "no label": ("rte", "entailment", "", ("row 2", "no label", "train needs labelled rows")),
    "a test file": (
        "sst2",
        "sentence\tlabel\nfine film\t1",
        "index\tsentence\n0\tfine film",
        ("row 2", "'label'", "test file"),
    ),
    "not JSON": ("snli jsonl", "}", "", ("row 1", "not a JSON object")),
    "key missing": ("snli jsonl", "sentence2", "hypothesis", ("row 1", "no column 'sentence2'")),
    "too many columns": ("rte", "a b\tc", "a\tb\tc", ("row 2", "5 columns, expected 4")),
    "headerless row too short": (
        "cola",
        "gj04\t1\t\tIt works.",
        "gj04\t1",
        ("row 1", "2 columns, expected 4"),
    ),
    "score out of range": ("stsb", "2.400", "7.5", ("row 1", "score '7.5'", "from 0 to 5")),
    "score not a number": ("stsb", "2.400", "nan", ("row 1", "score 'nan'")),
    "quote that runs away": ("storycloze", 'comma."', "comma.", ("row 2",)),
    "ending out of range": ("storycloze", ",2\n", ",3\n", ("row 2", "unknown label '3'")),
    "tag of another set": ("wnut17", "B-location", "B-LOC", ("row 4", "unknown label 'B-LOC'")),
    "word without a tag": ("wnut17", "Rome\tB-location", "Rome", ("row 4", "'Rome'")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_one_line_with_file_and_row(tmp_path: Path, case: str):
    name, good, bad, words = BROKEN[case]
    file, text = GOOD[name]
    assert good in text
    (tmp_path / file).write_text(text.replace(good, bad))
    with pytest.raises(DataError) as error:
        TASKS[name.split()[0]].read(tmp_path, "train")
    message = str(error.value)
    assert file in message and "\n" not in message
    assert all(word in message for word in words), message


def test_unreadable_files_are_data_errors(tmp_path: Path):
    with pytest.raises(DataError, match=r"no train file; expected train.tsv"):
        TASKS["sst2"].read(tmp_path, "train")
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(DataError, match="train.tsv: not UTF-8"):
        TASKS["sst2"].read(tmp_path, "train")
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(DataError, match="no train examples"):
        TASKS["sst2"].read(tmp_path, "train")


@pytest.mark.parametrize(
    "change",
    [
        {"answers": ["E"]},
        {"options": [["a", "b", "c"]]},
        {"answers": []},
        {"options": [["a", "b", "c", ""]]},
        {"article": None},
    ],
)
def test_broken_race_passage_names_the_file(tmp_path: Path, change: dict):
    passage = {
        "article": "x",
        "questions": ["q"],
        "options": [["a", "b", "c", "d"]],
        "answers": ["A"],
        "id": "1.txt",
    }
    passage |= change
    if passage["article"] is None:
        del passage["article"]
    (tmp_path / "train" / "high").mkdir(parents=True)
    (tmp_path / "train" / "high" / "1.txt").write_text(json.dumps(passage))
    with pytest.raises(DataError, match="high/1.txt"):
        TASKS["race"].read(tmp_path, "train")


def test_snli_pairs_without_consensus_are_left_out(tmp_path: Path):
    (tmp_path / "train.tsv").write_text(
        "sentence1\tsentence2\tgold_label\na\tb\t-\nc\td\tentailment\n"
    )
    assert TASKS["snli"].read(tmp_path, "train") == [Example(("c", "d"), 2)]


def test_control_ids_frame_the_texts(tokenizer: Tokenizer):
    a, b, c = tokenizer.encode_batch(["the old house", "a <e> b <delim>", "Maria smiled"])
    s, e, delim = (tokenizer.special_ids[name] for name in ("s", "e", "delim"))

    def sequences(name: str, example: object) -> list[list[int]]:
        return TASKS[name].encode([example], tokenizer, 128)[0].sequences

    assert sequences("sst2", Example(("the old house",), 1)) == [[s, *a, e]]
    assert sequences("rte", Example(("the old house", "a <e> b <delim>"), 0)) == [
        [s, *a, delim, *b, e]
    ]
    both_orders = [[s, *a, delim, *b, e], [s, *b, delim, *a, e]]
    assert sequences("mrpc", Example(("the old house", "a <e> b <delim>"), 0)) == both_orders
    one_each = [[s, *a, *b, delim, *c, e], [s, *a, *b, delim, *a, e]]
    question = Example(("the old house", "a <e> b <delim>", "Maria smiled", "the old house"), 0)
    assert sequences("race", question) == one_each
    assert not {s, e, delim} & {*a, *b, *c}


@pytest.mark.parametrize("all_subtokens", [False, True])
def test_words_are_labelled_by_their_first_sub_token(tokenizer: Tokenizer, all_subtokens: bool):
    task = build_task(TaskConfig(name="wnut17", label_all_subtokens=all_subtokens))
    words, tags = ("Xylophonia", "in", "\u200b", "Rome"), ("B-person", "O", "O", "B-location")
    encoded = task.encode([Example(words, tags)], tokenizer, 128)[0]
    pieces = tokenizer.encode_batch(list(words))
    assert len(pieces[0]) > 1
    firsts = [1 + sum(map(len, pieces[:index])) if pieces[index] else -1 for index in range(4)]
    assert encoded.words == firsts
    for index, (first, tag) in enumerate(zip(firsts, tags, strict=True)):
        if first >= 0:
            rest = task.classes.index(tag) if all_subtokens else IGNORE
            labels = [task.classes.index(tag), *[rest] * (len(pieces[index]) - 1)]
            assert encoded.target[first : first + len(pieces[index])] == labels
    predicted = [label if label != IGNORE else 0 for label in encoded.target]
    assert task.predict(predicted, encoded) == list(tags)


def test_words_beyond_the_context_are_predicted_outside():
    task = TASKS["wnut17"]
    example = Example(("a", "b", "c"), ("B-person", "B-person", "B-person"))
    encoded = task.arrange(example, [[10, 11], [12, 13], [14]], SPECIAL, n_ctx=6)
    assert (
        encoded.sequences == [[1, 10, 11, 12, 13, 2]]
        and encoded.words == [1, 3, -1]
        and encoded.cut == 1
    )
    assert task.predict([0, 1, 2, 3, 4, 5], encoded) == [task.classes[1], task.classes[3], "O"]


def test_fit_cuts_only_the_longest():
    assert fit([10, 200, 90], 100) == [10, 45, 45]
    random = np.random.default_rng(0)
    for _ in range(500):
        lengths, room = random.integers(0, 60, 3).tolist(), int(random.integers(3, 120))
        kept = fit(lengths, room)
        assert sum(kept) <= room and all(0 <= k <= n for k, n in zip(kept, lengths, strict=True))
        assert kept == lengths or sum(kept) >= room - 2
        assert all(k == n or k >= max(kept) - 2 for k, n in zip(kept, lengths, strict=True))


def test_a_pair_keeps_its_frame_whatever_its_lengths():
    random = np.random.default_rng(1)
    for _ in range(300):
        first, second = ([7] * random.integers(1, 400) for _ in range(2))
        n_ctx = int(random.integers(8, 300))
        ids, cut = pair(first, second, SPECIAL, n_ctx)
        assert len(ids) <= n_ctx and ids[0] == 1 and ids[-1] == 2 and ids.count(3) == 1
        assert ids.index(3) > 1 and ids[-2] == 7
        assert cut == len(first) + len(second) + 3 - len(ids)


def test_an_answer_survives_a_passage_of_any_length():
    task, n_ctx = TASKS["race"], 64
    example = Example(("",) * 6, 2)
    answers = [[50 + i] * (5 + i) for i in range(4)]
    for context, question in ((100_000, 20), (3, 2), (100, 100_000), (0, 0)):
        encoded = task.arrange(example, [[8] * context, [9] * question, *answers], SPECIAL, n_ctx)
        for sequence, answer in zip(encoded.sequences, answers, strict=True):
            assert len(sequence) <= n_ctx and sequence[0] == 1
            assert sequence[sequence.index(3) :] == [3, *answer, 2]
        assert len({tuple(sequence[: sequence.index(3)]) for sequence in encoded.sequences}) == 1
        assert encoded.cut == max(0, context + question + 8 + 3 - n_ctx)
    long = task.arrange(example, [[8] * 100, [9] * 100, *[[50] * 1000] * 4], SPECIAL, n_ctx)
    assert all(
        len(sequence) == n_ctx and {8, 9, 50} <= set(sequence) for sequence in long.sequences
    )


def test_stsb_score_is_the_expectation_of_its_classes():
    task = TASKS["stsb"]
    for score in (0.0, 0.25, 2.4, 3.0, 4.999, 5.0):
        target = task.target(score)
        assert sum(target) == pytest.approx(1) and np.dot(target, range(6)) == pytest.approx(score)
        logits = np.log(np.maximum(target, 1e-30)).tolist()
        assert task.predict(logits, None) == pytest.approx(score)


def test_unknown_task_lists_the_choices():
    with pytest.raises(ConfigError, match="task.name is 'sst3'; did you mean 'sst2'"):
        build_task(TaskConfig(name="sst3"))
