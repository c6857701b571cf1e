"""Offline stage: corpora in, SentencePiece model and WebDataset tar shards out."""
