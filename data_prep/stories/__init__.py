"""Writes the embedded sample: books and labelled sets of one made-up world, from a seed.

Imports nothing of `gpt1_ds`. In reading order:

- `words`: the tables of words and sentences
- `world`: seeded choices, people with facts, and sentences about them
- `books`: stories for pre-training
- `labelled`: labelled examples for each kind of task, in the publishers' file formats
"""
