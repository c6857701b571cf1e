"""The model card of an export, its README.md."""

from collections.abc import Sequence
from pathlib import Path

from gpt1_ds.base.errors import UserError
from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import read_metrics
from gpt1_ds.interchange.snippets import snippet
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import build_task
from gpt1_ds.tasks.scores import METRICS

LOSSES = ("loss", "task_loss", "lm_loss", "perplexity")
CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
---
# {name}

A GPT-1 (Radford et al. 2018) of {parameters:,} parameters, exported by `{command}`.

| | |
|---|---|
{rows}

`<pad> <s> <e> <delim> <eot>` are ids of their own, which no text gives (`split_special_tokens`). \
Documents begin and
end with `<eot>`. `tokenizer/` holds the files that `gpt1_ds.export --from-hf` takes back.
"""
ORIGINAL = """
The model read text through OpenAI's original pipeline (ftfy, spaCy), which `tokenizer.json` \
cannot express: it gives
transformers' ids, which differ in places. `tokenizer/` gives the model's own.
"""
HEAD = """
Inputs are `<s> text <e>` or `<s> first <delim> second <e>`; `tokenizer.json` adds these pieces. \
`head.safetensors` holds
`weight` (K, C) and `bias` (K) of the linear layer on the last block's states: {state}. {loadable}
"""
STATES = {
    "similarity": "at {place}, the sum over both orders of the pair",
    "multiple_choice": "at {place} of each answer",
    "token_classification": "at each word's first piece",
}
"""For some kinds of tasks, the states that the head reads; for the others they are at {place}."""
LOADABLE = """`AutoModelForSequenceClassification` gives its logits, the bias folded into \
`score.weight`: of one
sequence, for multiple_choice of one answer, for similarity as the sum of both orders' outputs. \
A text that is longer than the
context is cut as in the run.
"""
UNLOADABLE = "transformers has no class for this head."
PROGRAM = """
```python
{program}
```
"""


def model_card(
    folders: Sequence[Path],
    state: Json,
    config: GPTConfig,
    labels: list[str] | None,
    out: Path,
    command: str,
) -> str:
    """The text of the card for the checkpoint in `folders`, or the mean of several, newest first.

    `state` is the content of the newest one's state.json. Losses and scores are the last ones in
    the run's metrics.jsonl. `labels`: the classes, if transformers can load the head. `out`: the
    folder of the export, and `command` its command line.
    """
    folder = folders[0]
    in_best = folder.parents[1].name == "best"
    run = folder.parents[2] if in_best else folder.parents[1]
    task = state.get("task")
    rows = {
        "steps": state["step"],
        "layers": config.n_layer,
        "width": config.n_embd,
        "heads": config.n_head,
        "context": config.n_ctx,
        "vocabulary": config.vocab_size,
    }
    if len(folders) > 1:
        rows["weights"] = f"mean of {', '.join(path.name for path in folders)}"
    rows |= {f"data, {name}": tokens for name, tokens in state.get("data", {}).items()}
    if task:
        rows["task"] = f"{task['name']} ({task['kind']}): {', '.join(task['classes'])}"
        rows["weights from"] = state["init"]
    rows |= _work(run, state["step"], config)
    rows |= _last_scores(run, state["step"])
    card = CARD.format(
        pipeline=_pipeline_tag(task, labels),
        name=run.name,
        parameters=config.parameters,
        command=command,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
    )
    return card + _head(task, out, labels is not None) if task else card


def _pipeline_tag(task: Json | None, labels: list[str] | None) -> str:
    if labels:
        return "text-classification"
    is_of_tokens = task is not None and task["kind"] == "token_classification"
    return "token-classification" if is_of_tokens else "text-generation"


def _head(task: Json, out: Path, is_loadable: bool) -> str:
    pool = task.get("config", {}).get("pool", "last")
    place = "`<s>` (task.pool=first)" if pool == "first" else "`<e>`"
    state = STATES.get(task["kind"], "at {place}").format(place=place)
    text = HEAD.format(state=state, loadable=LOADABLE if is_loadable else UNLOADABLE)
    if not is_loadable and task["kind"] != "token_classification":
        return text
    try:
        described = build_task(TaskConfig(**task["config"]), strict=False)
    except (KeyError, TypeError, UserError):
        return text
    if described.kind != task["kind"]:
        return text
    return text + PROGRAM.format(program=snippet(described, str(out)))


def _work(run: Path, step: int, config: GPTConfig) -> dict[str, str]:
    """Tokens and FLOPs of pre-training, at the last line that was logged up to `step`."""
    trained = [record for record in read_metrics(run, "train") if record["step"] <= step]
    tokens = trained[-1].get("tokens") if trained else None
    if not isinstance(tokens, int):
        return {}
    flops = f"{config.flops_per_token * tokens:.3g}"
    return {f"tokens, FLOPs, step {trained[-1]['step']}": f"{tokens:,}, {flops}"}


def _last_scores(run: Path, step: int) -> dict[str, str]:
    """The last losses and scores of each split and corpus that were logged up to `step`."""
    last = {}
    for record in read_metrics(run):
        if record["step"] <= step:
            last[f"{record['split']} {record.get('corpus', '')}".strip()] = record
    shown = {"train": LOSSES, "valid": LOSSES, "task": tuple(METRICS)}
    rows = {}
    for name, record in last.items():
        keys = [key for key in shown.get(record["split"], ()) if record.get(key) is not None]
        if keys:
            scores = ", ".join(f"{key} {record[key]:.6g}" for key in keys)
            rows[f"{name}, step {record['step']}"] = scores
    return rows
