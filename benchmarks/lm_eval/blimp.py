"""BLiMP's files for lm-evaluation-harness.

Paradigms have columns of their own, and `datasets` wants the same in all files.
"""

import json

from datasets import Dataset

COLUMNS = "UID", "sentence_good", "sentence_bad"


def pairs(lines: Dataset) -> Dataset:
    """The columns that a score needs, of each line of the files."""
    return lines.map(read_pair, remove_columns=lines.column_names)


def read_pair(line: dict[str, str]) -> dict[str, str]:
    pair = json.loads(line["text"])
    return {name: pair[name] for name in COLUMNS}
