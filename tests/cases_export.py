"""What the ranks of the pool do for test_export.py."""

from pathlib import Path

from gpt1_ds import distributed, saving
from gpt1_ds.tokenizer import load_tokenizer
from tests.cases_engine import Trainer


def save_run(ds_path: str, shards: str, folder: str, overrides: list[str]) -> None:
    """Train two steps and commit them as a run does: with its tokenizer, so that it can be exported."""
    trainer, tokenizer = Trainer(ds_path, shards, overrides), load_tokenizer(Path(shards) / "tokenizer")
    trainer.run(0, 2)
    state = {"step": 2, "model": vars(trainer.shape), "tokenizer_sha256": tokenizer.sha256}
    saving.save(trainer.engine, Path(folder), 2, state, keep=1)
    distributed.on_main(lambda: tokenizer.copy_to(Path(folder) / "tokenizer"))
    trainer.close()
