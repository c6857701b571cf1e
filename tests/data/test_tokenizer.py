"""Both tokenizers, their word cache, and the training of a tokenizer."""

import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from data_prep import build_shards
from data_prep.train_tokenizer import CHUNK_CHARACTERS, main
from data_prep.verify_shards import verify
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data import tokenizer as module
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.tokenizer import (
    CONTROL_PIECES,
    Tokenizer,
    WordCache,
    load_tokenizer,
    words_are_independent,
)
from gpt1_ds.runs.setup import check_tokenizer
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

WORDS = (
    "a bold old sailor told the crew of a cold night, when 42 ships lay at anchor and nobody slept"
).split()


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that uses the control pieces' names as often as any word."""
    rng = random.Random(0)
    words = [*WORDS, *CONTROL_PIECES, "$", "<e>,", "x<s>y"]
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(3000)]
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("\n\n".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tok")
    main(["--corpus", f"a={text_file}", "--vocab-size", "380", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def test_control_pieces_have_fixed_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids == {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}
    assert tokenizer.kind == "sentencepiece" and tokenizer.vocab_size == 380
    assert len(tokenizer.fallback_ids) == 256


@pytest.mark.parametrize(
    "text", [*CONTROL_PIECES, "$", "<unk>", "told <e> of<eot>the $ <s>night", "<pad><pad>"]
)
def test_no_text_becomes_a_control_piece(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids and min(ids) > max(tokenizer.special_ids.values())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    ["naïve ☃ 龍", "tab\tand\n\nlines", "\u2581 meta", "ﬁne", "\x00", "🙂🙂", "x" * 100_000, ""],
)
def test_every_text_encodes_and_comes_back_normalised(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    again = tokenizer.decode(ids)
    assert all(4 < i < tokenizer.vocab_size and i != 5 for i in ids)  # 5 is <unk>
    assert tokenizer.encode(again) == ids


def test_case_and_compatibility_forms_are_folded_by_the_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("The ＯＬＤ\n  Sailor") == tokenizer.encode("the old sailor")


def test_lines_encode_to_the_ids_of_the_whole_text(tokenizer: Tokenizer, text_file: Path) -> None:
    text = text_file.read_text()
    by_line = tokenizer.encode_batch(text.split("\n"))
    assert tokenizer.encode(text) == list(itertools.chain.from_iterable(by_line))


def test_decode_skips_control_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the crew slept")
    assert tokenizer.decode([1, *ids[:2], 3, *ids[2:], 2, 4, 0]) == "the crew slept"


def test_model_is_reproducible(text_file: Path, folder: Path, tmp_path: Path) -> None:
    main(["--corpus", f"a={text_file}", "--vocab-size", "380", "--out", str(tmp_path)])
    for name in ("tokenizer.model", "preparation.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_sample_is_bounded_and_seeded(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--corpus", f"a={text_file}", "--vocab-size", "350", "--sample-bytes", "40000"]
    for out, seed in (("one", "1"), ("two", "1"), ("other", "2")):
        main([*options, "--seed", seed, "--out", str(tmp_path / out)])
    one, two, other = (load_tokenizer(tmp_path / name).sha256 for name in ("one", "two", "other"))
    assert one == two != other
    assert "pieces from 0.0 MB" in capsys.readouterr().out


def test_a_long_line_is_learned_from(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("zebra crossing " * 20 * CHUNK_CHARACTERS)
    main(["--corpus", f"a={tmp_path / 'long.txt'}", "--vocab-size", "287", "--out", str(tmp_path)])
    assert len(load_tokenizer(tmp_path).encode("zebra crossing")) == 2


@pytest.mark.parametrize("pieces, advice", [(100, "use at least"), (30_000, "use at most")])
def test_impossible_vocabulary_names_the_limit(
    folder: Path, text_file: Path, tmp_path: Path, pieces, advice
) -> None:
    options = ["--corpus", f"a={text_file}", "--out", str(tmp_path / "tok"), "--vocab-size"]
    with pytest.raises(ConfigError, match=f"--vocab-size {pieces}: .*{advice}") as raised:
        main([*options, str(pieces)])
    limit = int(str(raised.value).split()[-1])
    assert not (tmp_path / "tok").exists()
    main([*options, str(limit)])
    assert load_tokenizer(tmp_path / "tok").vocab_size == limit


def test_copy_is_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.copy_to(tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == tokenizer.files
    assert load_tokenizer(tmp_path / "copy").sha256 == tokenizer.sha256


def test_missing_or_damaged_tokenizer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer.*train_tokenizer"):
        load_tokenizer(tmp_path)
    model = (folder / "tokenizer.model").read_bytes()
    for damaged in (b"", b"junk" * 100, model[:1000]):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(DataError, match="tokenizer.model"):
            load_tokenizer(tmp_path)


# The word cache: ids are SentencePiece's own on any text.

POOLS = {
    "words": [*range(97, 123)] * 4 + [*range(33, 65)] + [32] * 30,
    "latin and controls": [*range(0x250)] + [32] * 60,
    "combining marks": [*range(0x300, 0x370), 32, 97, 101, 0x20, 0xA8, 0x344],
    "spaces of all kinds": [*map(ord, "\u2581 a\xa0\u3000\n\t\0\x1c\x85\u200b\ufeff\xad\u2028")],
    "arabic ligatures": [*range(0x600, 0x700), *range(0xFB50, 0xFE00)] + [32] * 60,
    "everything": [c for c in range(1, 0x30000, 7) if not 0xD800 <= c < 0xE000] + [32] * 3000,
}


@pytest.fixture(scope="module")
def cased(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cased")
    main(["--corpus", f"a={text_file}", "--vocab-size", "360", "--case", "keep", "--out", str(out)])
    return out


@pytest.mark.parametrize("case", ["fold", "keep"])
@pytest.mark.parametrize("pool", POOLS)
def test_ids_are_sentencepiece_s_on_random_text(
    folder: Path, cased: Path, pool: str, case: str
) -> None:
    folder = {"fold": folder, "keep": cased}[case]
    tokenizer = load_tokenizer(folder)
    assert words_are_independent((folder / "tokenizer.model").read_bytes())
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rng = random.Random(pool)
    characters = [chr(code) for code in POOLS[pool]]
    texts = ["".join(rng.choices(characters, k=rng.randrange(40))) for _ in range(3000)]
    expected = reference.encode(texts, num_threads=1)
    for temperature in ("cold", "warm"):
        assert tokenizer.encode_batch(texts) == expected, temperature
    joined = "\n".join(texts)
    assert tokenizer.encode(joined) == reference.encode(joined)


def test_ids_are_sentencepiece_s_on_real_and_on_odd_text(
    folder: Path, text_file: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small blocks, and with a cache too small for the text."""
    monkeypatch.setattr(module, "BLOCK_WORDS", 50)
    monkeypatch.setattr(WordCache, "MAX_WORDS", 300)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    path = shared_data / "books" / "valid" / "Burroughs_Edgar_Rice__The_Monster_Men.txt"
    book = path.read_text()
    odd = [
        "",
        " ",
        "\n\n",
        "x" * 100_000,
        "word " * 50_000,
        "  a  b ",
        "\u2581a\u2581 \u2581",
        "<e> $ <eot>",
        *CONTROL_PIECES,
    ]
    texts = [*book.split("\n"), book, text_file.read_text(), *odd]
    ids_T, tokens_N = tokenizer.encode_ragged(texts)
    expected = reference.encode(texts, num_threads=1)
    assert ids_T.dtype == np.uint32 and tokens_N.tolist() == [len(ids) for ids in expected]
    assert ids_T.tolist() == list(itertools.chain.from_iterable(expected))
    assert len(tokenizer._cache) <= 301
    assert max(map(len, tokenizer._cache)) <= WordCache.MAX_CHARACTERS


def test_no_text_and_no_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch([]) == [] == tokenizer.encode("")
    assert tokenizer.encode_batch(["", ""]) == [[], []]


def test_word_cache_survives_an_error_among_new_words(tokenizer: Tokenizer) -> None:
    before = tokenizer.encode("the quay beyond")
    with pytest.raises(TypeError):  # half a surrogate pair is no text
        tokenizer.encode("the quarry \ud800 beyond")
    assert tokenizer.encode("the quarry beyond") == tokenizer._model.encode("the quarry beyond")
    assert tokenizer.encode("the quay beyond") == before


def _set(part: str, name: str, value: object) -> Callable[[ModelProto], None]:
    return lambda proto: setattr(getattr(proto, part), name, value)


def _crossing_piece(proto: ModelProto) -> None:
    proto.pieces[-1].piece = "e\u2581o"


def _no_bytes(proto: ModelProto) -> None:
    proto.trainer_spec.byte_fallback = False
    for piece in proto.pieces:
        piece.type = piece.UNUSED if piece.type == piece.BYTE else piece.type


def _user_defined_piece(proto: ModelProto) -> None:
    proto.pieces[-1].type = proto.pieces[-1].USER_DEFINED


DEPENDENT = {
    "no dummy prefix": _set("normalizer_spec", "add_dummy_prefix", False),
    "spaces kept": _set("normalizer_spec", "remove_extra_whitespaces", False),
    "another normaliser": _set("normalizer_spec", "name", "user_defined"),
    "suffix": _set("trainer_spec", "treat_whitespace_as_suffix", True),
    "unigram": _set("trainer_spec", "model_type", 1),
    "unknowns fuse": _no_bytes,
    "piece across words": _crossing_piece,
    "user-defined piece": _user_defined_piece,
}


@pytest.mark.parametrize("change", DEPENDENT)
def test_a_model_whose_words_may_depend_on_each_other_is_not_cached(
    folder: Path, tmp_path: Path, change: str
) -> None:
    proto = ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    DEPENDENT[change](proto)
    assert not words_are_independent(proto.SerializeToString())
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    tokenizer = load_tokenizer(tmp_path)
    texts = ["the old  sailor", " told", "", "\u2603\u2603 \u2603", "a\nb"]
    assert tokenizer.encode_batch(texts) == tokenizer._model.encode(texts, num_threads=1)


def test_a_normaliser_that_reads_across_a_space_is_found(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.tsv").write_text("6F 6C 64 20 73\t7A\n")  # "old s" becomes "z"
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text_file.read_text().split("\n\n")),
        model_writer=written,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_tsv=str(tmp_path / "rules.tsv"),
        minloglevel=2,
    )
    proto = ModelProto.FromString(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    assert model.encode("old sailor") != model.encode("old") + model.encode("sailor")
    proto.normalizer_spec.name = "nmt_nfkc_cf"
    assert not words_are_independent(proto.SerializeToString())


# Both codecs, where they are used.


@pytest.fixture(params=["sentencepiece", "openai"])
def either(request: pytest.FixtureRequest, folder: Path, shared_data: Path) -> Path:
    return folder if request.param == "sentencepiece" else shared_data / "openai_bpe"


def test_shards_keep_their_tokenizer_and_refuse_another(
    either: Path, text_file: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    build_shards.main(
        ["--tokenizer", str(either), "--corpus", f"a={text_file.parent}", "--out", str(shards)]
    )
    tokenizer, manifest = load_tokenizer(either), read_manifest(shards)
    assert manifest.tokenizer["kind"] == tokenizer.kind
    assert manifest.tokenizer["files"] == tokenizer.files
    assert manifest.tokenizer["sha256"] == tokenizer.sha256
    assert manifest.tokenizer["special_ids"] == tokenizer.special_ids
    assert load_tokenizer(shards / "tokenizer").sha256 == tokenizer.sha256
    config = load(PretrainConfig, None, [f"tokenizer.kind={tokenizer.kind}", "train.max_steps=1"])
    assert check_tokenizer(config, shards / "tokenizer", manifest).sha256 == tokenizer.sha256
    other = {"sentencepiece": "openai", "openai": "sentencepiece"}[tokenizer.kind]
    for override in (f"tokenizer.kind={other}", "tokenizer.openai_pipeline=original"):
        config = load(PretrainConfig, None, [override, "train.max_steps=1"])
        with pytest.raises(ConfigError, match=override.split("=")[0]):
            check_tokenizer(config, shards / "tokenizer", manifest)
    name = tokenizer.files[-1]
    data = (shards / "tokenizer" / name).read_bytes()
    if name == "pipeline.json":
        changed = data.replace(b"transformers", b"original")
    else:
        changed = _with_another_piece(data)
    (shards / "tokenizer" / name).write_bytes(changed)
    config = load(PretrainConfig, None, ["train.max_steps=1"])
    with pytest.raises(DataError, match="not the tokenizer these shards were made with"):
        check_tokenizer(config, shards / "tokenizer", manifest)
    assert "sha256 differs" in "".join(verify(shards))


def _with_another_piece(model: bytes) -> bytes:
    proto = ModelProto.FromString(model)
    proto.pieces[-1].piece = "another"
    return proto.SerializeToString()
