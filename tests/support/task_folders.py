"""Tasks of the embedded sample and of the real data, and their folders there."""

FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "rte": "RTE",
    "qnli": "QNLI",
    "snli": "SNLI",
    "stsb": "STS-B",
    "mrpc": "MRPC",
    "qqp": "QQP",
    "race": "RACE",
    "storycloze": "StoryCloze",
    "wnut17": "WNUT17",
}
