"""OpenAI's BPE: the ids of both pipelines against transformers and the released algorithm."""

import json
import random
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import ftfy
import pytest
from transformers import OpenAIGPTTokenizer

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.openai_bpe import OPENAI_FILES
from gpt1_ds.data.tokenizer import CONTROL_PIECES, Tokenizer, load_tokenizer

BOOK = "Burroughs_Edgar_Rice__The_Monster_Men.txt"


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "openai_bpe"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def original(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    copy = tmp_path_factory.mktemp("original")
    for name in OPENAI_FILES:
        shutil.copyfile(folder / name, copy / name)
    (copy / "pipeline.json").write_text('{ "openai_pipeline": "original" }\n')
    return load_tokenizer(copy)


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OpenAIGPTTokenizer:
    copy = tmp_path_factory.mktemp("reference")
    for name, theirs in zip(OPENAI_FILES, ("vocab.json", "merges.txt"), strict=True):
        shutil.copyfile(folder / name, copy / theirs)
    return OpenAIGPTTokenizer.from_pretrained(copy)


def random_texts(count: int) -> list[str]:
    """Words, all kinds of marks, spaces, accents and controls, Chinese, private use; no halves of
    surrogate pairs."""
    common = [*range(97, 123)] * 20 + [*range(33, 65)] * 6 + [32] * 400 + [10] * 20
    rare = [0xFFFD, 0x3000, 0xFEFF, 0xAC00, 0xE33, 0xF065, 0x1F600, 0x200B, 0x85, 0x1C, 0xAD]
    pool = [*range(0x530), *range(0x2000, 0x2200), *range(0x4E00, 0x4E20), *common, *rare]
    ends = [
        "",
        "<unk>",
        "<UNK> <e>$",
        " <unk><unk>",
        " :) e.g. don't U.S.A. O'Neil's",
        "\n\n x",
        *CONTROL_PIECES,
    ]
    rng = random.Random(1)
    texts = []
    for _ in range(count):
        characters = [chr(rng.choice(pool)) for _ in range(rng.randrange(50))]
        texts.append("".join(characters) + rng.choice(ends))
    return texts


def test_ids_and_decoded_text_are_those_of_transformers_on_every_line(
    tokenizer: Tokenizer, reference: OpenAIGPTTokenizer, shared_data: Path
) -> None:
    paths = [
        *sorted((shared_data / "books" / "valid").glob("*.txt")),
        shared_data / "tasks" / "SST-2" / "dev.tsv",
    ]
    lines: list[str] = []
    for path in paths:
        lines += path.read_text().split("\n")
    assert len(lines) > 70_000
    expected = reference(lines, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_batch(lines) == expected
    distinct = list(map(list, set(map(tuple, expected[::5]))))
    assert [tokenizer.decode(ids) for ids in distinct] == reference.batch_decode(distinct)


def test_ids_are_those_of_transformers_on_random_text(
    tokenizer: Tokenizer, reference: OpenAIGPTTokenizer
) -> None:
    texts = [*random_texts(5000), "xyz" * 5000, "thethe" * 500, "<unk>" * 2000]
    expected = reference(texts, add_special_tokens=False)["input_ids"]
    by_text = zip(texts, tokenizer.encode_batch(texts), expected, strict=True)
    assert [text for text, ours, theirs in by_text if ours != theirs] == []


def test_only_characters_newer_than_transformers_tables_are_treated_otherwise(
    tokenizer: Tokenizer, reference: OpenAIGPTTokenizer
) -> None:
    """On the basic plane, with every 16th ideograph; on all planes 2.5 times as many differ."""
    codes = [*range(1, 0x3400), *range(0x3400, 0xD800, 16), *range(0xE000, 0x10000)]
    characters = list(map(chr, codes))
    texts = [f"a{character}b" for character in characters]
    expected = reference(texts, add_special_tokens=False)["input_ids"]
    pairs = zip(characters, tokenizer.encode_batch(texts), expected, strict=True)
    differing = {character for character, ours, theirs in pairs if ours != theirs}
    vocabulary = set("".join(tokenizer._bpe._ids))
    assert len(differing) < 250 and not differing & vocabulary
    # The characters of Unicode 3.2 are the same in both, except for four that changed their
    # category later. Python still has the table of Unicode 3.2.
    old = {c for c in differing if unicodedata.ucd_3_2_0.category(c) != "Cn"}
    assert old <= set("\u166d\u1734\u1885\u1886")


def test_quirks_of_the_transformers_pipeline(tokenizer: Tokenizer) -> None:
    assert tokenizer.pipeline == "transformers" and tokenizer.kind == "openai"
    assert tokenizer.encode("<unk>") == [0] == tokenizer.encode("\u2603")
    assert tokenizer.fallback_ids == {0}
    assert tokenizer.encode("Caf\u00e9\n\n\tna\u00efve") == tokenizer.encode("cafe naive")
    assert tokenizer.decode(tokenizer.encode("It's 5.")) == "it ' s 5 ."
    assert 40477 not in tokenizer.encode("a\nb") and tokenizer.newline_id is None


def test_no_text_becomes_a_control_piece(tokenizer: Tokenizer, original: Tokenizer) -> None:
    expected = {"pad": 40478, "s": 40479, "e": 40480, "delim": 40481, "eot": 40482}
    for codec in (tokenizer, original):
        assert codec.special_ids == expected and codec.vocab_size == 40483
        ids_T, _ = codec.encode_ragged([*CONTROL_PIECES, *random_texts(300)])
        assert ids_T.max() < 40478
        ids = codec.encode("the crew slept")
        with_control_ids = [40479, *ids[:2], 40481, *ids[2:], 40480, 40482, 40478]
        assert codec.decode(with_control_ids) == "the crew slept"


class Released:
    """The algorithm of OpenAI's `text_utils.py`, written plainly.

    Whole texts go through spaCy; all occurrences of a pair are merged at once.
    """

    def __init__(self, folder: Path):
        import spacy

        self.spacy = spacy.blank("en").tokenizer
        self.ids = json.loads((folder / OPENAI_FILES[0]).read_text())
        merges = (folder / OPENAI_FILES[1]).read_text().split("\n")[1:-1]
        self.rank = {tuple(merge.split()): rank for rank, merge in enumerate(merges)}
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        text = ftfy.fix_text(text)
        for character, plain in zip("—–―…´", ("-", "-", "-", "...", "'"), strict=True):
            text = text.replace(character, plain)
        marks = r"""-+ ~+ !+ "+ ;+ \?+ \++ ,+ \)+ \(+ /+ \*+ \[+ \]+ }+ {+ \|+ _+""".split()
        text = re.sub("(" + "|".join(marks) + ")", r" \1 ", text)
        text = re.sub(r"[^\S\n]+", " ", re.sub(r"\s*\n\s*", " \n ", text)).strip()
        ids: list[int] = []
        for token in self.spacy(text):
            ids += self.word(token.text.lower())
        return ids

    def word(self, word: str) -> list[int]:
        if word not in self.known:
            symbols = [*word[:-1], word[-1] + "</w>"]
            while pairs := [
                pair for pair in zip(symbols, symbols[1:], strict=False) if pair in self.rank
            ]:
                best, merged = min(pairs, key=self.rank.__getitem__), []
                while symbols:
                    size = 2 if tuple(symbols[:2]) == best else 1
                    merged.append("".join(symbols[:size]))
                    symbols = symbols[size:]
                symbols = merged
            joined = " ".join(symbols)
            pieces = ["\n</w>"] if joined == "\n  </w>" else joined.split(" ")
            self.known[word] = [self.ids.get(piece, 0) for piece in pieces]
        return self.known[word]


def test_ids_of_the_original_pipeline_are_the_released_code_s(
    original: Tokenizer, shared_data: Path
) -> None:
    released = Released(shared_data / "openai_bpe")
    book = (shared_data / "books" / "valid" / BOOK).read_text()
    texts = [book[:200_000], *random_texts(1000), 'He said: "No--\\never!!!" (it\'s gone…) “ΣΑΣ”']
    for _ in ("cold", "warm"):
        encoded = original.encode_batch(texts)
        by_text = zip(texts, encoded, strict=True)
        assert [text for text, ours in by_text if ours != released.encode(text)] == []
    assert encoded[0].count(40477) == len(re.findall(r"\s*\n\s*", book[:200_000].strip()))
    assert original.decode(original.encode("Don't go.\nStay!")) == "do n't go . \n stay !"


def test_a_text_is_its_lines_with_line_breaks_between_them(original: Tokenizer) -> None:
    """So shards, which are made line by line, have the ids of whole texts."""
    texts = [*random_texts(2000), "a\r\n\x85b\u2028 \n\nc\r", "<p>\n&lt;b &amp; c", " \n\t\n", ""]
    for text in texts:
        joined: list[int] = []
        for ids in filter(None, original.encode_batch(text.split("\n"))):
            joined += [original.newline_id, *ids] if joined else ids
        assert original.encode(text) == joined
    assert original.encode("Don't!") == [587, 538, 267]
    assert original.newline_id == 40477 and original.encode("&lt;b") == original.encode("<b")
    assert original.encode(texts[-4]).count(40477) == 2


def test_each_merge_makes_a_piece_of_its_own_after_its_parts(tokenizer: Tokenizer) -> None:
    """So to merge one pair at a time, as transformers does, equals to merge all its occurrences, as
    the released code does."""
    made: dict[str, int] = {}
    for rank, (first, second) in enumerate(tokenizer._bpe._merges):
        assert max(made.get(first, -1), made.get(second, -1)) < rank and first + second not in made
        made[first + second] = rank


def test_the_pipeline_is_part_of_the_tokenizer(
    tokenizer: Tokenizer, original: Tokenizer, tmp_path: Path
) -> None:
    assert original.pipeline == "original" and original.sha256 != tokenizer.sha256
    for codec in (tokenizer, original):
        codec.copy_to(tmp_path / codec.pipeline)
        copy = load_tokenizer(tmp_path / codec.pipeline)
        assert (copy.pipeline, copy.sha256) == (codec.pipeline, codec.sha256)
        assert copy.files == codec.files
    codec.check_choice("openai", "original")
    codec.check_choice(None, None)
    with pytest.raises(
        ConfigError, match="tokenizer.openai_pipeline is 'transformers'.*'original'"
    ):
        codec.check_choice(None, "transformers")


def test_original_without_spacy_names_the_extra(
    original: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original.copy_to(tmp_path)
    monkeypatch.setitem(sys.modules, "spacy", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"needs spaCy: pip install 'gpt1-ds\[openai\]'"):
        load_tokenizer(tmp_path).encode("text")


BAD = {
    "no merges": (OPENAI_FILES[1], None, "No such file"),
    "no vocabulary": (OPENAI_FILES[0], None, "No such file"),
    "no json": (OPENAI_FILES[0], b"{", "Expecting"),
    "json of another kind": (OPENAI_FILES[0], b"[1, 2]", "restore"),
    "ids with a hole": (OPENAI_FILES[0], b'{"<unk>": 0, "a": 2}', "not 0, 1, 2"),
    "half a line": (OPENAI_FILES[1], b"#version: 0.2\nt h\ni", "'i' makes no piece"),
    "truncated merges": (
        OPENAI_FILES[1],
        b"#version: 0.2\nt h\n",
        "1 merges, but 40000 pieces to make",
    ),
    "strange merges": (OPENAI_FILES[1], b"#version: 0.2\nq zzz\n", "'q zzz' makes no piece"),
    "binary merges": (OPENAI_FILES[1], b"\xff\xfe", "restore"),
    "unknown pipeline": (
        "pipeline.json",
        b'{"openai_pipeline": "orignal"}',
        "none of transformers, original",
    ),
    "pipeline of another kind": ("pipeline.json", b"[]", "restore"),
    "sentencepiece too": ("tokenizer.model", b"", "keep one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tokenizer: Tokenizer, tmp_path: Path, case: str) -> None:
    name, data, reason = BAD[case]
    tokenizer.copy_to(tmp_path)
    (tmp_path / name).unlink() if data is None else (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{re.escape(name)}: .*({reason})") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)
