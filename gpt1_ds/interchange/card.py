"""The model card of an export, its README.md."""

from pathlib import Path

from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import read_metrics
from gpt1_ds.model.gpt import GPTConfig
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
Inputs are `<s> text <e>` or `<s> first <delim> second <e>`. `head.safetensors` holds `weight` \
(K, C) and `bias` (K) of
the linear layer on the last block's states: at `<e>`, for similarity the sum over both orders of \
the pair, for
token_classification at each word's first piece. {loadable}
"""
LOADABLE = """`AutoModelForSequenceClassification` gives its logits, the bias folded into \
`score.weight`: of one
sequence, for multiple_choice of one answer, for similarity as the sum of both orders' outputs."""
UNLOADABLE = "transformers has no class for this head."


def model_card(
    folder: Path,
    state: Json,
    config: GPTConfig,
    labels: list[str] | None,
    command: str,
) -> str:
    """The text of the card for the checkpoint in `folder`.

    `state` is the content of its state.json. Losses and scores are the last ones in the run's
    metrics.jsonl. `labels`: the classes, if transformers can load the head. `command`: the command
    line of the export.
    """
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
    rows |= {f"data, {name}": tokens for name, tokens in state.get("data", {}).items()}
    if task:
        rows["task"] = f"{task['name']} ({task['kind']}): {', '.join(task['classes'])}"
        rows["weights from"] = state["init"]
    rows |= _last_scores(run, state["step"])
    card = CARD.format(
        pipeline="text-classification" if labels else "text-generation",
        name=run.name,
        parameters=config.parameters,
        command=command,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
    )
    if task:
        card += HEAD.format(loadable=LOADABLE if labels else UNLOADABLE)
    return card


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
