"""How many words of text a pre-training run has seen, and its checkpoints at some numbers of them.

`data_prep.build_shards` counts the words between white space of each corpus. The words seen are the
trained tokens times words / tokens of the training text, in the shares of the mixture. After a
whole epoch that is exact; within one it is as even as the text.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data.manifest import Manifest
from gpt1_ds.data.order import WindowOrder
from gpt1_ds.settings.sections import PretrainConfig


def words_of_corpora(manifest: Manifest) -> dict[str, float]:
    """Words a token of each training corpus; without those whose manifest does not say it."""
    found = {}
    corpora = manifest.preparation.get("corpora", {})
    for name, entry in manifest.splits.get("train", {}).items():
        text = corpora.get(name, {}).get("text", {}).get("train", {})
        if type(text.get("words")) is int and entry.tokens:
            found[name] = text["words"] / entry.tokens
    return found


def words_a_token(
    order: WindowOrder, words: Mapping[str, float], config: PretrainConfig
) -> float | None:
    """Those of the mixture; None if not known, ConfigError if `checkpoint.at_words` needs them."""
    shares_C = np.diff(order.bounds) / order.epoch_windows
    shares = {name: share for name, share in zip(order.corpora, shares_C, strict=True) if share}
    unknown = [name for name in shares if name not in words]
    if unknown and config.checkpoint.at_words:
        raise ConfigError(
            f"checkpoint.at_words is set, but the manifest in data.shards {config.data.shards} "
            f"does not count the words of {unknown[0]}; build the shards anew, or leave it out"
        )
    if unknown:
        return None
    return float(sum(share * words[name] for name, share in shares.items()))


def reached(at_words: Sequence[float] | None, before: float | None, now: float | None) -> int:
    """The largest of `at_words` that a step reaches first, by the words seen; 0: none."""
    if not at_words or before is None or now is None:
        return 0
    return int(max((words for words in at_words if before < words <= now), default=0))
