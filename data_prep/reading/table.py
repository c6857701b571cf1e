"""The table of a corpus that a build prints."""

from gpt1_ds.data.manifest import SPLITS, Manifest


def print_table(manifest: Manifest) -> None:
    """A line for each corpus and split, and one for what was dropped or mended, as the manifest tells it."""
    print(
        f"{'corpus':<16}{'split':<7}{'documents':>12}{'tokens':>16}{'bytes/token':>13}{'unknown bytes':>15}"
    )
    for corpus, record in manifest.preparation["corpora"].items():
        for split in SPLITS:
            entry = manifest.splits[split].get(corpus)
            if entry:
                text = record["text"][split]
                # The <eot> after each document stands for no text.
                per_token = text["text_bytes"] / max(1, entry.tokens - entry.documents)
                print(
                    f"{corpus:<16}{split:<7}{entry.documents:>12,}{entry.tokens:>16,}{per_token:>13.2f}"
                    f"{text['unknown']:>15,}"
                )
        notes = [f"{count:,} {reason}" for reason, count in record["dropped"].items() if count]
        notes += [
            f"{count:,} {reason} mended" for reason, count in record["mended"].items() if count
        ]
        print(f"{'':<16}validation: {record['split']}; dropped: {', '.join(notes) or 'nothing'}")
