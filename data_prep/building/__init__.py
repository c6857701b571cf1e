"""Builds a shard directory from the documents that `reading` gives, on one or many ranks.

May import `data_prep.reading`, `gpt1_ds.base` and `gpt1_ds.data`. In reading order:

- `ranks`: the processes of a build, how they share work, fail together and show their progress
- `earlier`: what an earlier build left in the output folder
- `encoding`: units of work, and their text as tokens in files of the work folder
- `duplicates`: which documents and paragraphs occur more than once
- `parts`: the tokens read back, without what is dropped, and in which split
- `survivors`: which of several equal documents and paragraphs stays
- `word_budget`: which documents are trained on, if their words are limited
- `layout`: which of them lie in which sample and shard; writes the shards
- `consistency`: whether a finished manifest agrees with itself and its folder
- `corpus_table`: the table that a build prints at its end
"""
