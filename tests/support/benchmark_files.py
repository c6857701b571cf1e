"""Files in the form of BLiMP's and LAMBADA's publishers, of a few lines each."""

import json
import zipfile
from pathlib import Path

PARADIGMS = {
    "adjunct_island": ("syntax", "island_effects"),
    "animate_subject_trans": ("syntax", "s-selection"),
    "causative": ("syntax", "argument_structure"),
    "principle_A_domain_1": ("syntax/semantics", "binding"),
}
PUBLISHED = {"ngram": 0.4, "lstm": 0.5, "txl": 0.6, "gpt2": 0.7}
NOUNS = ("miller", "river", "house", "garden", "letter", "window")


def json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair_rows(paradigm: str, pairs: int = 6) -> list[dict]:
    """The last two sentences of a paradigm are the same; some paradigms have more columns."""
    field, term = PARADIGMS[paradigm]
    rows = []
    for index in range(pairs):
        noun, other = NOUNS[index % 6], NOUNS[(index + len(paradigm)) % 6]
        good = f"The old {noun} saw the {other}."
        bad = f"The old {noun} saw {other} the." if index < pairs - 1 else good
        about = {"field": field, "linguistics_term": term, "UID": paradigm}
        if field != "syntax":
            about["one_prefix_prefix"] = "The old"
        rows.append({"sentence_good": good, "sentence_bad": bad, **about, "pairID": str(index)})
    return rows


def make_benchmarks(folder: Path, pairs: int = 6) -> Path:
    """A folder with BLiMP.zip, its summary, and lambada_openai.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "BLiMP.zip", "w") as archive:
        for paradigm in PARADIGMS:
            lines = [json.dumps(row) for row in pair_rows(paradigm, pairs)]
            archive.writestr(f"data/{paradigm}.jsonl", "\n".join(lines) + "\n")
        archive.writestr("__MACOSX/data/._causative.jsonl", b"\0\1")
    summary = []
    for place, paradigm in enumerate([*PARADIGMS, "wh_island"]):
        scores = {name: score + place / 100 for name, score in PUBLISHED.items()}
        summary.append({"UID": paradigm, "linguistics_term": "any", **scores})
    json_lines(folder / "BLiMP_models_summary.jsonl", [*summary, {**summary[0], "UID": "overall"}])
    passages = [
        {"context": f"The {noun} was old,\nand she saw the", "continuation": noun} for noun in NOUNS
    ]
    json_lines(folder / "lambada_openai.jsonl", passages)
    return folder
