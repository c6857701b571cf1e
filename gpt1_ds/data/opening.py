"""Opens a shard directory or URL: checks its shards and makes its token streams."""

import hashlib
from pathlib import Path

from tqdm import tqdm

from gpt1_ds.base.errors import ConfigError, DataError, near
from gpt1_ds.data.manifest import MANIFEST, Manifest, damage, read_manifest
from gpt1_ds.data.remote import ShardCache, shard_cache
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.settings.sections import DataConfig


def local_shards(data: DataConfig) -> Path:
    """The folder with `manifest.json` and `tokenizer/` of data.shards; of a URL, the cache that they are copied to."""
    root, cache = _place(data)
    if cache:
        cache.copy(MANIFEST)
        for name in read_manifest(root).tokenizer["files"]:
            cache.copy(f"tokenizer/{name}")
    return root


def _place(data: DataConfig) -> tuple[Path, ShardCache | None]:
    cache = shard_cache(data.shards, data.cache, data.cache_bytes) if "://" in data.shards else None
    return (cache.root if cache else Path(data.shards)), cache


def sound_manifest(data: DataConfig, manifest: Manifest) -> Manifest:
    """The manifest, once every shard is found as it says; all ranks call, each looks at its part.

    Sizes are checked and, by data.verify, hashes; shards behind a URL are hashed when they are fetched. DataError for
    the first damaged shard, or, with data.quarantine, the manifest of the others, the loss told by corpus.
    """
    root, cache = _place(data)
    if cache and data.quarantine:
        raise ConfigError(
            f"data.quarantine is true, but data.shards is {data.shards}; it takes a folder"
        )
    mine = [] if cache else manifest.shards()[collectives.rank() :: collectives.world_size()]
    found = {}
    with tqdm(
        mine,
        "checking shards",
        unit="shard",
        delay=2,
        disable=None if collectives.is_main() else True,
    ) as bar:
        for shard in bar:
            if problem := damage(root / shard.file, shard, data.verify):
                found[shard.file] = problem
    everywhere = collectives.gather_json([found, fingerprint(manifest)])
    if any(prints != everywhere[0][1] for _, prints in everywhere):
        raise DataError(
            f"{root / MANIFEST}: ranks see different manifests; give all nodes the same data.shards"
        )
    damaged = {file: problem for files, _ in everywhere for file, problem in files.items()}
    if damaged and not data.quarantine:
        file, problem = min(damaged.items())
        raise DataError(
            f"{root / file}: {problem} ({len(damaged)} damaged shards in all); build it again, or train "
            "without with data.quarantine=true"
        )
    whole = manifest.without(damaged)
    for split, corpora in manifest.splits.items() if damaged else ():
        for corpus, entry in corpora.items():
            tokens, shards = entry.tokens - whole.splits[split][corpus].tokens, len(entry.shards)
            lost = shards - len(whole.splits[split][corpus].shards)
            say(
                f"quarantine {split}/{corpus}: {lost} of {shards} shards left out, {tokens:,} of "
                f"{entry.tokens:,} tokens"
            )
    for file, problem in sorted(damaged.items()):
        say(f"quarantine {file}: {problem}")
    return whole


def fingerprint(manifest: Manifest) -> dict[str, str]:
    """Tokens and hash of each corpus by split: what the order is an order of, and what a resume must find again."""
    prints = {}
    for split, corpora in manifest.splits.items():
        for corpus, entry in corpora.items():
            digest = hashlib.sha256(
                "".join(shard.sha256 for shard in entry.shards).encode()
            ).hexdigest()[:12]
            prints[f"{split}/{corpus}"] = f"{entry.tokens} tokens, sha256 {digest}"
    return prints


def open_streams(data: DataConfig, manifest: Manifest, split: str) -> dict[str, TokenStream]:
    """The token stream of each corpus of a split; those with weight 0, or not named by the weights, are left out."""
    corpora = manifest.splits.get(split, {})
    for name in data.weights:
        if name not in manifest.splits.get("train", {}):
            raise ConfigError(
                f"data.weights.{name}: no such corpus in {data.shards}; "
                f"{near(name, manifest.splits.get('train', {}))}"
            )
    names = [
        name
        for name in corpora
        if split != "train" or not data.weights or data.weights.get(name, 0) > 0
    ]
    root, cache = _place(data)
    names = [name for name in names if corpora[name].tokens > 1]
    streams = {name: TokenStream(root, manifest, split, name, cache=cache) for name in names}
    if not streams:
        raise DataError(
            f"{data.shards}: no tokens in split '{split}' of the chosen corpora; check data.weights or "
            "rerun data_prep.build_shards"
        )
    return streams
