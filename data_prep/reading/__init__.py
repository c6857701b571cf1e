"""Reads corpora: files of many formats in, documents of clean text out.

May import `gpt1_ds.base` and `gpt1_ds.data`. In reading order:

- `corpus`: the sources that `--corpus NAME=PATH` stands for, and the documents of each
- `formats`: compression, text encodings, and how a file of each format is cut into documents
- `cleaning`: the steps of `--clean`, from the text of a file to the text that is tokenised
"""
