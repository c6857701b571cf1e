"""Reads corpora: files of many formats in, documents of clean text out.

May import `gpt1_ds.base` and `gpt1_ds.data`. In reading order:

- `corpus`: the sources that `--corpus NAME=PATH` stands for, and the documents of each
- `folders`: the files below a folder, those that are read and those that are passed over
- `containers`: compressed files and archives, read to their very end or refused
- `formats`: what a file's name says, and how a file of each format is cut into documents
- `parquet`: the text column of a parquet file
- `decoding`: bytes become text, and binary data are told from it
- `cleaning`: the steps of `--clean`, from the text of a file to the text that is tokenised
- `gutenberg`: the step that cuts Project Gutenberg's headers and licences
"""
