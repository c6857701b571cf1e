"""From text to batches: tokenizers, shards, and the global order of a training run.

May import: settings, distributed, base.

Files in reading order:

- `tokenizer`: the two tokenizers, and their cache of words
- `openai_bpe`: OpenAI's released BPE and the two ways to prepare text for it
- `manifest`: what a shard directory holds; reading, checking and writing its manifest
- `shard_writer`: writes one shard
- `remote`: downloads shards from a URL into a cache of limited size
- `token_stream`: one corpus as a stream of tokens, read by position
- `opening`: checks a shard directory and opens its streams
- `order`: the global order of windows, and positions in it
- `batches`: the batches of a rank in this order, with their dropout keys
"""
