"""The model card of an export."""

import json
from pathlib import Path
from typing import Any

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

`<pad> <s> <e> <delim> <eot>` are ids of their own, which no text gives (`split_special_tokens`). Documents begin and
end with `<eot>`. `tokenizer/` holds the files that `gpt1_ds.export --from-hf` takes back.
"""
ORIGINAL = """
The model read text through OpenAI's original pipeline (ftfy, spaCy), which `tokenizer.json` cannot express: it gives
transformers' ids, which differ in places. `tokenizer/` gives the model's own.
"""
HEAD = """
Inputs are `<s> text <e>` or `<s> first <delim> second <e>`. `head.safetensors` holds `weight` (K, C) and `bias` (K) of
the linear layer on the last block's states: at `<e>`, for similarity the sum over both orders of the pair, for
token_classification at each word's first piece. {loadable}
"""
LOADABLE = """`AutoModelForSequenceClassification` gives its logits, the bias folded into `score.weight`: of one
sequence, for multiple_choice of one answer, for similarity as the sum of both orders' outputs."""
UNLOADABLE = "transformers has no class for this head."


def model_card(
    folder: Path, state: dict[str, Any], config: GPTConfig, labels: list[str] | None, command: str
) -> str:
    """README.md of the export; losses and scores are the last in the run's metrics.jsonl."""
    run = folder.parents[2] if folder.parents[1].name == "best" else folder.parents[1]
    log, task = run / "metrics.jsonl", state.get("task", {})
    points = map(json.loads, log.read_text(encoding="utf-8").splitlines() if log.exists() else ())
    last = {
        f"{p['split']} {p.get('corpus', '')}".strip(): p
        for p in points
        if p["step"] <= state["step"]
    }
    shape = {
        "layers": config.n_layer,
        "width": config.n_embd,
        "heads": config.n_head,
        "context": config.n_ctx,
    }
    rows = {"steps": state["step"], **shape, "vocabulary": config.vocab_size}
    rows |= {f"data, {name}": tokens for name, tokens in state.get("data", {}).items()}
    if task:
        rows["task"] = f"{task['name']} ({task['kind']}): {', '.join(task['classes'])}"
        rows["weights from"] = state["init"]
    for name, point in last.items():
        told = (
            LOSSES
            if point["split"] in ("train", "valid")
            else METRICS
            if point["split"] == "task"
            else ()
        )
        if scores := ", ".join(
            f"{key} {point[key]:.6g}" for key in told if point.get(key) is not None
        ):
            rows[f"{name}, step {point['step']}"] = scores
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    pipeline = f"text-{'classification' if labels else 'generation'}"
    card = CARD.format(
        pipeline=pipeline, name=run.name, parameters=config.parameters, command=command, rows=table
    )
    return card + (HEAD.format(loadable=LOADABLE if labels else UNLOADABLE) if task else "")
