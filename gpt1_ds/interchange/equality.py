"""Compares a model with the same model in transformers, and a tokenizer with its export.

transformers is an optional dependency.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.gpt import GPT
from gpt1_ds.tasks import Example, Task

TOLERANCE = 1e-4
"""Largest allowed difference to transformers' logits, relative to the largest logit."""
PROBES = (
    "It's 10: \u201cCaf\u00e9 <e>\u201d, said A\u0301gnes\u2014 for $5...",
    "  \ttwo  <s><pad> lines\n<eot>",
    "\U0001f600",
)
"""Texts that our tokenizer and the exported one must give the same ids."""
PROBE_TOKENS = 64
PIPELINE_BATCH = 32


def import_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "gpt1_ds.export needs transformers: pip install 'gpt1-ds[interchange]'"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def check_tokenizer(tokenizer: Tokenizer, out: Path, home: Path) -> None:
    """Raises DataError if the exported tokenizer gives other ids than ours for `PROBES`."""
    if tokenizer.pipeline == "original":
        return  # tokenizer.json cannot express this pipeline; the model card says so
    theirs = import_transformers().AutoTokenizer.from_pretrained(out)
    for text in PROBES:
        if theirs.encode(text, add_special_tokens=False) != tokenizer.encode(text):
            raise DataError(
                f"{home}: transformers makes other ids of {text!r}; install transformers 5.23"
            )


def probe_ids(model: GPT, special_ids: dict[str, int]) -> Tensor:
    """Two random sequences (B, T) that end with `<e>` and have no padding."""
    shape = 2, min(model.config.n_ctx, PROBE_TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(model.config.vocab_size, shape, generator=generator)
    ids_BT[ids_BT == special_ids["pad"]] = special_ids["e"]
    ids_BT[:, -1] = special_ids["e"]
    return ids_BT


@torch.inference_mode()
def next_token_logits(model: GPT, ids_BT: Tensor) -> Tensor:
    """The logits (B, T, V) of every position."""
    hidden_BTC, _ = model(ids_BT)
    return F.linear(hidden_BTC, model.wte)[..., : model.config.vocab_size]


def relative_difference(ours: Tensor, theirs: Tensor, what: str) -> float:
    """The largest difference, relative to the largest of `ours`; DataError above `TOLERANCE`."""
    difference = ((ours - theirs).abs().max() / ours.abs().max()).item()
    if not difference < TOLERANCE:
        share = f"{difference:.1e} of the largest"
        raise DataError(f"{what} differ by {share}; nothing is written")
    return difference


@torch.inference_mode()
def logits_in_transformers(folder: Path, auto_class: str, ids_BT: Tensor) -> Tensor:
    """What the model in `folder` gives in transformers, in float32."""
    cls = getattr(import_transformers(), auto_class)
    logits: Tensor = cls.from_pretrained(folder, dtype=torch.float32)(ids_BT).logits
    return logits


@torch.inference_mode()
def logits_of_tensors(tensors: dict[str, Tensor], config: Json, ids_BT: Tensor) -> Tensor:
    """What transformers' language model gives with the decoder `tensors`."""
    transformers = import_transformers()
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**config)).eval()
    model.transformer.load_state_dict(tensors, strict=False)
    model.tie_weights()
    logits: Tensor = model(ids_BT).logits
    return logits


def pipeline_logits(folder: Path, task: Task, examples: Sequence[Example]) -> Tensor:
    """The logits (examples, K) that transformers' pipeline makes of the texts as they are."""
    inputs: list[Any] = []
    for example in examples:
        first, *rest = example.texts
        inputs += [{"text": a, "text_pair": b} for a, b in _orders(task, first, rest)] or [first]
    classify = import_transformers().pipeline(
        "text-classification", model=str(folder), truncation=True, device="cpu"
    )
    found = classify(inputs, batch_size=PIPELINE_BATCH, top_k=None, function_to_apply="none")
    labels = list(classify.model.config.id2label.values())
    rows = []
    for scores in found:
        of_label = {score["label"]: score["score"] for score in scores}
        rows.append([of_label[label] for label in labels])
    return torch.tensor(rows).view(len(examples), -1, len(labels)).sum(1)


def _orders(task: Task, first: str, rest: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of texts whose logits are added: none for a single text."""
    if not rest:
        return []
    pairs = [(first, rest[0])]
    return [*pairs, (rest[0], first)] if task.kind == "similarity" else pairs
