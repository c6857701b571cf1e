"""Tokenizers: the ids of texts, and back."""

import os
from functools import cache
from pathlib import Path
from typing import Any

from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import ROOT, need
from tests.golden.prepared import tokenizer_folder
from tests.golden.store import Group, scratch

TOKENIZERS = Group("tokenizers")

TEXTS = (
    "The captain looked at the sea, and didn't speak.",
    "  Two  blanks,\ta tab and\na new line\n\n",
    "It's 10:30 -- \u201cCaf\u00e9\u201d, said \u00c1gnes\u2026 for $5!",
    "\u039f\u03b4\u03c5\u03c3\u03c3\u03ad\u03b1\u03a3 \u4e2d\u6587 \U0001f600 <unk> <e><eot>",
    "",
)


@cache
def openai_folder(pipeline: str) -> Path:
    """OpenAI's released files, to be read through this pipeline."""
    data = Path(os.environ.get("GPT1_DATA", ROOT.parent / "shared" / "data")) / "openai_bpe"
    if not data.is_dir():
        need("data", f"there are no files of OpenAI's tokenizer at {data.resolve()}: set GPT1_DATA")
    folder = scratch() / f"openai-{pipeline}"
    folder.mkdir()
    for name in ("encoder_bpe_40000.json", "vocab_40000.bpe"):
        (folder / name).symlink_to(data.resolve() / name)
    (folder / "pipeline.json").write_text(f'{{"openai_pipeline": "{pipeline}"}}')
    return folder


def ids_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Each text's ids and the text that they give back, and the control ids."""
    ids = tokenizer.encode_batch(TEXTS)
    return {
        "ids": ids,
        "decoded": [tokenizer.decode(part) for part in ids],
        "special": tokenizer.special_ids,
        "vocab_size": tokenizer.vocab_size,
        "sha256": tokenizer.sha256[:16],
    }


@TOKENIZERS.value
def ids_of_the_sample_tokenizer() -> dict[str, Any]:
    return ids_of(load_tokenizer(tokenizer_folder()))


@TOKENIZERS.value
def ids_of_openai_as_transformers() -> dict[str, Any]:
    return ids_of(load_tokenizer(openai_folder("transformers")))


@TOKENIZERS.value
def ids_of_openai_as_released() -> dict[str, Any]:
    """The words are those of spaCy's rules."""
    return ids_of(load_tokenizer(openai_folder("original")))
