"""Reads and writes the formats of transformers, and reads OpenAI's release.

May import `tasks`, `model`, `data`, `settings` and `base`. It reads only safetensors and plain
arrays, because loading a pickle can run code. The files, in reading order:

- `weights`: converts names and shapes of parameters between transformers and this project.
- `configuration`: converts between `config.json` and `GPTConfig`.
- `safetensors_files`: reads and writes `model.safetensors`, as one file or in shards.
- `tokenizer_json`: writes our tokenizers as files that transformers loads.
- `openai_release`: OpenAI's released parameter arrays and tokenizer files.
- `equality`: compares logits and token ids with those of transformers.
- `snippets`: the programs in a model card.
- `card`: the model card of an export.
"""
