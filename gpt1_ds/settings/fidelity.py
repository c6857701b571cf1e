"""What `fidelity: as_released` stands for: the choices of OpenAI's released code, as settings.

The code is openai/finetune-transformer-lm. Where it and the paper leave a choice, the defaults are
those of this project. The switch sets every part that the user has not set.
"""

from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig

AS_RELEASED = "as_released"
PARTS: dict[str, object] = {
    "tokenizer.openai_pipeline": "original",
    "optim.kind": "openai_adam",
    "schedule.progress": "absolute",
    "model.embd_dropout": "matrix",
    "model.position_logits": True,
}
TASK_PARTS: dict[str, object] = {
    "task.lm_mean": "sequence",
    "task.sampling": "plain",
    "task.drop_last": True,
}
FIELDS_PART: dict[str, object] = {"task.truncation": "fields"}
ONE_TEXT = ("cola", "sst2", "conll2003", "wnut17", "classification", "token_classification")
"""The tasks and kinds without it: they have one text."""
SPLIT_PART: dict[str, object] = {"task.split": "released"}
"""Of Story Cloze, the only task that was released."""


def parts(config: PretrainConfig) -> dict[str, object]:
    """The settings of the released code for such a run, by `section.key`."""
    if not isinstance(config, FinetuneConfig):
        return PARTS
    task = config.task.kind or config.task.name
    fields = {} if task in ONE_TEXT else FIELDS_PART
    split = SPLIT_PART if task == "storycloze" else {}
    return {**PARTS, **TASK_PARTS, **fields, **split}


def fill(config: PretrainConfig, written: set[str]) -> None:
    """Set the parts of the switch, if it is on, except for those that the user has `written`."""
    if config.fidelity.kind != AS_RELEASED:
        return
    for name, value in parts(config).items():
        if name not in written:
            section, _, key = name.partition(".")
            setattr(getattr(config, section), key, value)


def contradictions(config: PretrainConfig) -> list[str]:
    """A line for each part that the user has set to something else than the switch."""
    if config.fidelity.kind != AS_RELEASED:
        return []
    lines = []
    for name, value in parts(config).items():
        section, _, key = name.partition(".")
        chosen = getattr(getattr(config, section), key)
        if chosen != value:
            lines.append(
                f"fidelity is {AS_RELEASED}, but {name} is {_shown(chosen)}, not {_shown(value)}"
            )
    return lines


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower()
