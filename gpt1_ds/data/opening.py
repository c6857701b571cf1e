"""Opens a shard directory or URL: checks its shards and opens its token streams."""

import hashlib
from pathlib import Path

from gpt1_ds.base.errors import ConfigError, DataError, near
from gpt1_ds.data.manifest import MANIFEST, Manifest, find_damage, read_manifest
from gpt1_ds.data.order import GLOBAL, GROUPED
from gpt1_ds.data.remote import ShardCache, shard_cache
from gpt1_ds.data.token_stream import FEW_SHARDS, TokenStream
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import progress, say
from gpt1_ds.distributed.descriptors import room_for
from gpt1_ds.settings.sections import DataConfig

MOST_MAPPED = 1024
"""Shards of a split that stay mapped, if the limit of open files allows it."""


def local_shards(data: DataConfig) -> Path:
    """The folder with the `manifest.json` and the `tokenizer/` of data.shards.

    If data.shards is a URL, these files are first copied to a folder of the cache.
    """
    root, cache = _root_and_cache(data)
    if cache:
        cache.copy(MANIFEST)
        for name in read_manifest(root).tokenizer["files"]:
            cache.copy(f"tokenizer/{name}")
    return root


def is_remote(data: DataConfig) -> bool:
    """Whether the shards lie behind a URL."""
    return "://" in data.shards


def order_kind(data: DataConfig) -> str:
    """The order of windows of a new run: of `order.SHUFFLES`."""
    return data.order or (GROUPED if is_remote(data) else GLOBAL)


def _root_and_cache(data: DataConfig) -> tuple[Path, ShardCache | None]:
    if not is_remote(data):
        return Path(data.shards), None
    cache = shard_cache(data.shards, data.cache, data.cache_bytes)
    return cache.root, cache


def sound_manifest(data: DataConfig, manifest: Manifest) -> Manifest:
    """Check every shard against the manifest, and return the manifest of the good shards.

    All ranks must call it, and each checks a part. The check compares sizes and, with data.verify,
    hashes. Shards behind a URL are checked later, when they are downloaded. A damaged shard raises
    DataError. With data.quarantine it is left out of the returned manifest instead, and rank 0
    prints what each corpus lost.
    """
    root, cache = _root_and_cache(data)
    if cache and data.quarantine:
        raise ConfigError(
            f"data.quarantine is true, but data.shards is {data.shards}; it takes a folder"
        )
    damaged_here = {} if cache else _damaged_of_this_rank(data, root, manifest)
    damaged: dict[str, str] = {}
    own_print = fingerprint(manifest)
    for files, print_of_rank in collectives.gather_json([damaged_here, own_print]):
        if print_of_rank != own_print:
            raise DataError(
                f"{root / MANIFEST}: ranks see different manifests; give all nodes the same "
                "data.shards"
            )
        damaged |= files
    if not damaged:
        return manifest
    if not data.quarantine:
        file, problem = min(damaged.items())
        raise DataError(
            f"{root / file}: {problem} ({len(damaged)} damaged shards in all); build it again, or "
            "train without with data.quarantine=true"
        )
    rest = manifest.without(damaged)
    _say_what_is_lost(manifest, rest, damaged)
    return rest


def _damaged_of_this_rank(data: DataConfig, root: Path, manifest: Manifest) -> dict[str, str]:
    """The damaged shards in this rank's part: file -> description of the damage."""
    damaged = {}
    shards = manifest.shards()[collectives.rank() :: collectives.world_size()]
    with progress("checking shards", len(shards), "shard") as bar:
        for shard in shards:
            if problem := find_damage(root / shard.file, shard, data.verify):
                damaged[shard.file] = problem
            bar.update()
    return damaged


def _say_what_is_lost(manifest: Manifest, rest: Manifest, damaged: dict[str, str]) -> None:
    for split, corpora in manifest.splits.items():
        for corpus, entry in corpora.items():
            kept = rest.splits[split][corpus]
            lost = len(entry.shards) - len(kept.shards)
            say(
                f"quarantine {split}/{corpus}: {lost} of {len(entry.shards)} shards left out, "
                f"{entry.tokens - kept.tokens:,} of {entry.tokens:,} tokens"
            )
    for file, problem in sorted(damaged.items()):
        say(f"quarantine {file}: {problem}")


def tell_of_line_breaks(data: str, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Rank 0 prints a line if the shards at `data` lack the line breaks of the tokenizer."""
    if tokenizer.newline_id != manifest.newline_id:
        say(
            f"warning: {data}: made by an early version, without the token of line breaks "
            f"({tokenizer.newline_id}) that every other text has; build the shards again to train "
            "it"
        )


def fingerprint(manifest: Manifest) -> dict[str, str]:
    """Number of tokens and hash of each corpus, by `split/corpus`.

    The order of windows depends on no other data, so a resume compares only these.
    """
    prints = {}
    for split, corpora in manifest.splits.items():
        for corpus, entry in corpora.items():
            hashes = "".join(shard.sha256 for shard in entry.shards)
            digest = hashlib.sha256(hashes.encode()).hexdigest()[:12]
            prints[f"{split}/{corpus}"] = f"{entry.tokens} tokens, sha256 {digest}"
    return prints


def open_streams(data: DataConfig, manifest: Manifest, split: str) -> dict[str, TokenStream]:
    """The token stream of each corpus of a split.

    If `data.weights` is given, the split `train` has only corpora with a weight above 0.
    """
    in_training = manifest.splits.get("train", {})
    for name in data.weights:
        if name not in in_training:
            raise ConfigError(
                f"data.weights.{name}: no such corpus in {data.shards}; {near(name, in_training)}"
            )
    root, cache = _root_and_cache(data)
    shards = {}
    for name, entry in manifest.splits.get(split, {}).items():
        wanted = split != "train" or not data.weights or data.weights.get(name, 0) > 0
        if wanted and entry.tokens > 1:
            shards[name] = len(entry.shards)
    if not shards:
        raise DataError(_no_text(data, manifest, split))
    total = sum(shards.values())
    room = room_for(min(total, MOST_MAPPED))
    streams = {}
    for name, count in shards.items():
        max_open = max(FEW_SHARDS, room * count // total)
        streams[name] = TokenStream(root, manifest, split, name, max_open, cache)
    return streams


def _no_text(data: DataConfig, manifest: Manifest, split: str) -> str:
    """What to do about a split without text in the chosen corpora."""
    if split == "valid":
        return (
            f"{data.shards}: no validation text; build it again with `data_prep.build_shards"
            " --validation NAME=PATH`, or with another --validation-fraction"
        )
    filled = [name for name, entry in manifest.splits.get(split, {}).items() if entry.tokens > 1]
    if not filled:
        return (
            f"{data.shards}: no training text; build it again from more documents with"
            " data_prep.build_shards, or hold less out (--validation, --validation-fraction)"
        )
    return (
        f"data.weights: no corpus with training text in {data.shards} has a weight above 0; give"
        f" one to {' or '.join(filled)}"
    )
