"""Functions that ranks of the pool run for test_export.py."""

from pathlib import Path

from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.settings.sections import CheckpointConfig
from tests.support.cases_engine import Trainer


def save_run(ds_path: str, shards: str, folder: str, overrides: list[str]) -> None:
    """Train two steps and commit a checkpoint with the tokenizer, so that it can be exported."""
    trainer, tokenizer = (
        Trainer(ds_path, shards, overrides),
        load_tokenizer(Path(shards) / "tokenizer"),
    )
    trainer.run(0, 2)
    save_checkpoint(trainer.engine, Path(folder), 2, trainer.state(2), CheckpointConfig(keep=1))
    collectives.on_main(lambda: tokenizer.copy_to(Path(folder) / "tokenizer"))
    trainer.close()
