"""The table of a shard directory's corpora. A build prints it, and `verify_shards --stats`."""

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
        print(f"{'':<16}validation: {record['split']}; dropped: {notes}")
