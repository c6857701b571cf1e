"""Data preparation: corpora in, a SentencePiece model and WebDataset tar shards out.

May import `base`, `distributed`, `settings` and `data` of `gpt1_ds`. The commands, in the order of
their use:

- `download`: fetches public corpora and labelled sets
- `sample`: writes the embedded sample, which needs no download
- `train_tokenizer`: trains the SentencePiece model
- `build_shards`: tokenises corpora into shards
- `verify_shards`: checks a shard directory
- `inspect_shards`: prints documents of a shard directory back
- `trace`: lists the documents of a training step

`published_sets` has the addresses for `download`. Other parts are in `reading/`, `building/` and
`stories/`.
"""

from gpt1_ds.base.beginning import begin

begin()  # before any other import
