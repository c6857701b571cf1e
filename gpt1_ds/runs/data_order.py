"""The order of windows of a run: it stays as it began; a start says what it costs behind a URL."""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.memory import GB
from gpt1_ds.base.urls import hide_secrets
from gpt1_ds.checkpoints.folder import checkpoint_folders, read_state
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.batches import TABLE_WINDOWS, shards_of
from gpt1_ds.data.manifest import Shard
from gpt1_ds.data.opening import is_remote, order_kind
from gpt1_ds.data.order import GLOBAL, GROUPED, GROUPED_1, SHUFFLES, Cursor, WindowOrder
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say, warn
from gpt1_ds.runs.setup import Settings
from gpt1_ds.settings.loading import run_folder
from gpt1_ds.settings.sections import DataConfig, PretrainConfig


def with_order(settings: Settings[PretrainConfig]) -> Settings[PretrainConfig]:
    """The settings with the `data.order` of the run, which its newest checkpoint says.

    A new run has the one that is given, or else grouped if any rank reads its shards from a URL,
    else global. All ranks call. ConfigError if another one is given than the run has.
    """
    config, folder = settings.config, run_folder(settings.config)
    given = config.data.order
    earlier = _earlier_kind(settings) if collectives.is_main() else None
    earlier = collectives.from_main(earlier)
    if earlier is not None and earlier not in SHUFFLES:
        raise DataError(
            f"{folder}: began with the data.order {earlier}, which this version does not know; "
            "continue it with the version that began it"
        )
    if earlier and given not in (None, earlier):
        raise ConfigError(
            f"{folder}: began with data.order={earlier}, and its data have that order; now "
            f"data.order is {given}: leave it out, or give another run.name, or --from-scratch"
        )
    remote = any(collectives.gather_json(is_remote(config.data)))
    kind = earlier or given or (GROUPED if remote else GLOBAL)
    return replace(settings, config=replace(config, data=replace(config.data, order=kind)))


def _earlier_kind(settings: Settings[PretrainConfig]) -> str | None:
    """What the checkpoints of the run say; None for a new run."""
    if settings.resumes():
        for folder in checkpoint_folders(run_folder(settings.config) / "checkpoints"):
            with suppress(DataError):  # a resume falls back to the checkpoint before it, too
                return kind_of(read_state(folder))
    return None


def kind_of(state: CheckpointState) -> str:
    return state.order or GROUPED_1


def recorded_kind(data: DataConfig) -> str | None:
    """What the checkpoints of a run are to say; that of early versions has no name there."""
    kind = order_kind(data)
    return None if kind == GROUPED_1 else kind


def check_cache(
    order: WindowOrder, streams: Sequence[TokenStream], data: DataConfig, cursor: Cursor
) -> None:
    """Say what the order costs if the shards lie behind a URL.

    `streams` are those of training. ConfigError if every batch would have to fetch shards again.
    """
    if not is_remote(data):
        return
    limit, url = data.cache_bytes, hide_secrets(data.shards)
    if order.kind != GLOBAL:
        first = order.index_of(cursor)
        shards = shards_of(order, streams, first + np.arange(TABLE_WINDOWS))
        if _bytes(shards) > limit:
            warn(
                f"data.cache_bytes {limit}: below the {_bytes(shards)} bytes of the {len(shards)} "
                f"shards that data.order={order.kind} reads at a time, which are fetched again and "
                "again; raise it"
            )
        return
    shards = list(itertools.chain.from_iterable(stream.shards for stream in streams))
    if _bytes(shards) > limit:
        raise ConfigError(
            f"data.cache_bytes {limit}: below the {_bytes(shards)} bytes of the shards in {url}, "
            "and with data.order=global each batch reads all over them; raise it, give a folder "
            "with the shards, or begin a run with data.order=grouped"
        )
    say(
        f"data.order is global: its first batches wait until all {len(shards)} shards "
        f"({_bytes(shards) / GB:.2f} GB) have come from {url}; they stay in data.cache"
    )


def _bytes(shards: Sequence[Shard]) -> int:
    return sum(shard.bytes for shard in shards)
