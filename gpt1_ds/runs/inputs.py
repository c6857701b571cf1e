"""What the methods of `TrainedModel` take: texts, token ids, examples of a task, numbers.

A wrong value is a ConfigError that names the argument and its place.
"""

from collections.abc import Iterable, Sequence

import torch

from gpt1_ds.base.bounds import Bounds
from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.tasks import Example, Task
from gpt1_ds.tasks.multiple_choice import WithoutQuestion
from gpt1_ds.tasks.token_classification import TokenClassification

Text = str | Sequence[int]
"""A text, or token ids that are taken as they are."""
Given = str | Sequence[str]
"""The texts of one example: a text, a pair, a context with its answers, or words."""
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    raise ConfigError(f"dtype is {dtype}; {near(str(dtype), DTYPES)}")


def device_of(device: torch.device | str | None) -> torch.device:
    """The device of this name; None: the GPU if there is one, else the CPU."""
    if device is None:
        return collectives.device()
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device is {device}: {reason}; give cpu, cuda or cuda:N") from error
    return found


def check_number(name: str, value: float, bounds: Bounds) -> None:
    if problem := bounds.problem(value):
        raise ConfigError(f"{name} is {value}; {problem}")


def several(given: Iterable[Text] | str, name: str) -> list[Text]:
    """The given texts as a list. One text alone is a list of one."""
    texts: list[Text] = [given] if isinstance(given, str) else list(given)
    for index, text in enumerate(texts):
        if not isinstance(text, str) and not _all_are(text, int):
            raise ConfigError(f"{name}[{index}] is {text!r}; give a text, or a list of token ids")
    return texts


def _all_are(values: object, kind: type) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, kind) for value in values)


def documents(texts: list[Text], name: str, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each text after an <eot>, as a document begins in training."""
    written = [text for text in texts if isinstance(text, str)]
    encoded = iter(tokenizer.encode_batch(written))
    found: list[list[int]] = []
    for index, text in enumerate(texts):
        if isinstance(text, str):
            found.append([tokenizer.special_ids["eot"], *next(encoded)])
            continue
        found.append([int(token) for token in text])
        strays = [token for token in found[-1] if not 0 <= token < tokenizer.vocab_size]
        if strays or not found[-1]:
            problem = f"has the id {strays[0]}" if strays else "has no ids"
            raise ConfigError(f"{name}[{index}] {problem}; ids are 0 to {tokenizer.vocab_size - 1}")
    return found


def examples(given: Iterable[Given], task: Task) -> list[Example]:
    """The examples that `predict` takes for a task of this kind."""
    rows = [given] if isinstance(given, str) else given
    return [_example(row, task, f"inputs[{index}]") for index, row in enumerate(rows)]


def _example(given: Given, task: Task, where: str) -> Example:
    if not isinstance(given, str) and not _all_are(given, str):
        raise ConfigError(f"{where} is {given!r}; give {_shape(task)}")
    if isinstance(task, TokenClassification):
        return task.from_line(given, where) if isinstance(given, str) else Example(tuple(given))
    texts = (given,) if isinstance(given, str) else tuple(given)
    if isinstance(task, WithoutQuestion) and len(texts) == task.n_texts - 1:
        texts = (texts[0], "", *texts[1:])
    if len(texts) != task.n_texts:
        plural = "s" * (len(texts) != 1)
        raise ConfigError(f"{where} has {len(texts)} text{plural}; give {_shape(task)}")
    return Example(texts)


def _shape(task: Task) -> str:
    """What `predict` takes as one example of the task."""
    answers = len(task.classes)
    if isinstance(task, WithoutQuestion):
        return f"a tuple of the context and {answers} answers"
    return {
        "classification": "one text",
        "entailment": "a tuple (premise, hypothesis)",
        "similarity": "a tuple of two texts",
        "multiple_choice": f"a tuple of the context, the question and {answers} answers",
        "token_classification": "a sentence, or the list of its words",
    }[task.kind]
