"""The table of a shard directory's corpora. A build prints it, and `verify_shards --stats`.

A build also warns of a split that is of little use.
"""

import sys

from data_prep.reading.folders import shown
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.manifest import SPLITS, Manifest


def print_corpus_table(manifest: Manifest) -> None:
    """A line for each corpus and split, and one for what was dropped or repaired."""
    print(
        f"{'corpus':<16}{'split':<7}{'documents':>12}{'tokens':>16}{'bytes/token':>13}"
        f"{'unknown bytes':>15}"
    )
    for corpus, record in manifest.preparation["corpora"].items():
        for split in SPLITS:
            entry = manifest.splits[split].get(corpus)
            if entry:
                text = record["text"][split]
                # The <eot> after each document stands for no text.
                per_token = text["text_bytes"] / max(1, entry.tokens - entry.documents)
                print(
                    f"{corpus:<16}{split:<7}{entry.documents:>12,}{entry.tokens:>16,}"
                    f"{per_token:>13.2f}{text['unknown']:>15,}"
                )
        dropped = [f"{count:,} {reason}" for reason, count in record["dropped"].items() if count]
        mended = [f"{count:,} {fault} mended" for fault, count in record["mended"].items() if count]
        notes = ", ".join(dropped + mended) or "nothing"
        words = record["text"]["train"].get("words")  # older manifests do not have it
        shown_words = "" if words is None else f"; {words:,} words of training text"
        split = f"validation: {record['split']}{shown_words}"
        print(f"{'':<16}{split}; dropped: {notes}{_left_out(record)}")


def warn_of_splits(manifest: Manifest) -> None:
    """A line on stderr for each corpus with an empty split, or most of it in validation."""
    fraction = manifest.preparation["settings"]["validation_fraction"]
    for corpus, record in manifest.preparation["corpora"].items():
        tokens = {
            split: corpora[corpus].tokens if corpus in corpora else 0
            for split, corpora in manifest.splits.items()
        }
        share = tokens["valid"] / max(1, sum(tokens.values()))
        by_hash = record["split"] == "hash"
        fix = f"give other files to --corpus {corpus}= or --validation {corpus}="
        if by_hash:
            fix = (
                f"hold text out with --validation {corpus}=PATH, cut the corpus into more"
                f" documents, or choose another --validation-fraction (now {fraction:g})"
            )
        if not tokens["train"]:
            problem = "all its text is validation, none is left for training"
        elif not tokens["valid"]:
            problem = "it has no validation text"
        elif share > (min(0.5, fraction + 0.25) if by_hash else 0.5):
            problem = f"validation holds {share:.0%} of its tokens"
        else:
            continue
        print(f"warning: --corpus {corpus}: {problem}; {fix}", file=sys.stderr)


def _left_out(record: Json) -> str:
    """What no document has. Older manifests have no records of it."""
    cut = record.get("cut", {})
    notes = [f"; cut: {count:,} characters by {step}" for step, count in cut.items()]
    if record.get("passed_over"):
        notes.append(f"; {shown(record['passed_over'], record['passed_over_first'])}")
    return "".join(notes)
