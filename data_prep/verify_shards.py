"""Checks every hash, size, count, token id and document offset of a shard directory: exit 0, or 3 with what is wrong.

    python -m data_prep.verify_shards shards/

Every shard is read twice: for its hash, and for its samples.
"""

import argparse
import os
from pathlib import Path

from tqdm import tqdm

from gpt1_ds.errors import DataError, guard
from gpt1_ds.shards import read_manifest, verify


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.verify_shards", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="shard directory, the --out of build_shards")
    root = parser.parse_args(argv).directory
    entries = [entry for corpora in read_manifest(root).splits.values() for entry in corpora.values()]
    shards = [shard for entry in entries for shard in entry.shards]
    quiet = False if os.environ.get("GPT1_PROGRESS") == "1" else None
    total = sum(shard.bytes for shard in shards)
    with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", disable=quiet) as bar:
        problems = verify(root, bar.update)
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(f"{root}: {len(problems)} problems, listed above; delete the folder and build it again")
    tokens = sum(entry.tokens for entry in entries)
    print(f"{root}: {len(shards):,} shards, {total / 1e6:,.1f} MB, {tokens:,} tokens, all as the manifest says")


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
