"""What the result of a planned run of fine-tuning would be made from."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.folder import checkpoint_sha256
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.runs.fine_tuning import starting_point
from gpt1_ds.runs.provenance import differences, examples_digest, facts_of_run, made_from
from gpt1_ds.runs.setup import shape_of
from gpt1_ds.settings.sections import FinetuneConfig, TaskConfig
from gpt1_ds.tasks import LABELLED, build_task
from gpt1_ds.tasks.splits import read_splits

DESCRIPTION = ("name", "data", "kind", "columns", "labels", "files", "metrics")
"""The keys of the task section that say how its files are read."""


def refuse_other_facts(folder: Path, planned: FinetuneConfig) -> None:
    """ConfigError if `folder` has a result that was made from something else than `planned`."""
    if not (folder / "result.json").exists():
        return
    found = differences(facts_of_run(folder), planned_facts(planned))
    if found:
        raise ConfigError(f"{folder}: made with {'; '.join(found)}; choose another --out")


def planned_facts(config: FinetuneConfig) -> Json:
    """`provenance.made_from` of a run of `config` that starts now."""
    shape, tokenizer, source = starting_point(config, False)
    config = replace(config, model=replace(config.model, **shape_of(shape)))
    takes_weights = source is not None and config.task.n_transfer != -1
    facts = CheckpointState(
        step=0,
        model={},
        tokenizer_sha256=tokenizer.sha256,
        init_sha256=checkpoint_sha256(source) if source and takes_weights else None,
        data=cached_data(json.dumps({key: getattr(config.task, key) for key in DESCRIPTION})),
    )
    return made_from(config, facts)


@cache
def cached_data(described: str) -> dict[str, str] | None:
    """Digests of the training and dev examples; None if they cannot be read now."""
    config = TaskConfig(**json.loads(described))
    try:
        splits = read_splits(build_task(config, strict=False), config.data)
        return {split: examples_digest(splits[split]) for split in LABELLED}
    except DataError:
        return None
