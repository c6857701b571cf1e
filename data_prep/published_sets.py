"""The public corpora and labelled sets that `download` fetches, with their addresses and hashes."""

import urllib.parse
from itertools import chain
from typing import NamedTuple

from gpt1_ds.base.urls import hide_secrets

ARCHIVES = (".zip", ".tar.gz")
_GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
_MRPC = "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase"
_STATMT = "https://www.statmt.org/lm-benchmark"
_LM1B = "1-billion-word-language-modeling-benchmark-r13output"
_SNLI = "https://nlp.stanford.edu/projects/snli/snli_1.0.zip"
_SCITAIL = "http://data.allenai.org.s3.amazonaws.com/downloads/SciTailV1.1.zip"
_RACE = "http://www.cs.cmu.edu/~glai1/data/race/RACE.tar.gz"
_DPR = "http://www.hlt.utdallas.edu/~vince/data/emnlp12"
_WNUT17 = "https://raw.githubusercontent.com/leondz/emerging_entities_17/master"


class File(NamedTuple):
    """One published file."""

    url: str
    gives: str
    """Path below --out: the folder that an archive holds, or the file itself."""
    sha256: str = ""
    """The first digits of the published file's hash; empty if it is not known."""

    @property
    def name(self) -> str:
        return urllib.parse.urlsplit(self.url).path.rpartition("/")[2]

    @property
    def is_archive(self) -> bool:
        return self.name.endswith(ARCHIVES)

    @property
    def shown(self) -> str:
        """The address as messages show it."""
        return hide_secrets(self.url)


SETS = {
    "lm1b": [File(f"{_STATMT}/{_LM1B}.tar.gz", _LM1B, "01ba60381110baf7f189dfd2")],
    "cola": [File(_GLUE + "CoLA.zip", "CoLA", "f212fcd832b8f7b435fb991f")],
    "sst2": [File(_GLUE + "SST-2.zip", "SST-2", "d67e16fb55739c1b32cdce98")],
    "rte": [File(_GLUE + "RTE.zip", "RTE", "6bf86de103ecd335f3441bd4")],
    "qnli": [File(_GLUE + "QNLIv2.zip", "QNLI", "e634e78627a29adaecd4f955")],
    "mnli": [
        File(_GLUE + "MNLI.zip", "MNLI", "e7c1d896d26ed6caf7001106"),
        File(_GLUE + "AX.tsv", "MNLI/diagnostic.tsv", "0e13510b1bb14436ff7e2ee8"),
    ],
    "wnli": [File(_GLUE + "WNLI.zip", "WNLI", "ae0e8e4d16f4d46d4a0a566e")],
    "stsb": [File(_GLUE + "STS-B.zip", "STS-B", "e60a6393de5a8b5b9bac5020")],
    "qqp": [File(_GLUE + "QQP-clean.zip", "QQP", "40e7c862c04eb26ee04b67fd")],
    "mrpc": [
        File(f"{_MRPC}_train.txt", "MRPC/msr_paraphrase_train.txt", "60a9b09084528f0673eedee2"),
        File(f"{_MRPC}_test.txt", "MRPC/msr_paraphrase_test.txt", "a04e271090879aaba6423d65"),
    ],
    "snli": [File(_SNLI, "snli_1.0", "afb3d70a5af5d8de0d9d81e2")],
    "scitail": [File(_SCITAIL, "SciTailV1.1", "3fccd37350a94ca280b75998")],
    "race": [File(_RACE, "RACE", "b2769cc9fdc5c546a693300e")],
    "dpr": [
        File(f"{_DPR}/train.c.txt", "DPR/train.c.txt"),
        File(f"{_DPR}/test.c.txt", "DPR/test.c.txt"),
    ],
    "wnut17": [
        File(f"{_WNUT17}/wnut17train.conll", "WNUT17/wnut17train.conll"),
        File(f"{_WNUT17}/emerging.dev.conll", "WNUT17/emerging.dev.conll"),
        File(f"{_WNUT17}/emerging.test.annotated", "WNUT17/emerging.test.annotated"),
    ],
}
_GLUE_SETS = ("cola", "sst2", "rte", "qnli", "mnli", "wnli", "stsb", "qqp", "mrpc")
SETS["glue"] = list(chain.from_iterable(SETS[name] for name in _GLUE_SETS))
ON_REQUEST = {
    "books": "BooksCorpus is no longer given out by its authors (https://yknzhu.wixsite.com/mbweb)."
    " Give a copy that you have (books_large_p1.txt and _p2.txt), or a folder of books, to"
    " `build_shards --corpus books=PATH`.",
    "storycloze": "Story Cloze is given out on request: fill in the form at"
    " https://cs.rochester.edu/nlp/rocstories/, put the csv files into one folder and name it in"
    " task.data.",
}
