"""Perplexity of a pre-trained run on the validation split of a shard directory, or on plain text; scores of tasks.

    python -m gpt1_ds.eval runs/gpt1 --data shards --corpus books
    python -m gpt1_ds.eval runs/gpt1 --data novel.txt --stride 128
    python -m gpt1_ds.eval runs/gpt1 --data news.en.heldout-00000-of-00050 --lines
    python -m gpt1_ds.eval runs/sst2 --task sst2 --data SST-2/dev.tsv
    python -m gpt1_ds.eval runs/sst2 --predict < sentences.txt
    python -m gpt1_ds.eval runs/gpt1 --zero-shot race --data RACE

Three figures of the same sum of nats: perplexity a token; perplexity a word, the predicted ends of documents being
words, as in the 1 Billion Word Benchmark; and bits a byte. The last two do not depend on how a tokenizer divides the
text, so that models with different ones can be compared on the same text.

| --data              | documents                     | predicted ends | words and bytes                        |
|---------------------|-------------------------------|----------------|----------------------------------------|
| shard directory     | a corpus is read as one       | all in it      | words of its decoded tokens; bytes of  |
|                     | stream, as in training        |                | the text that was tokenised            |
| file, folder of txt | each file, after an <eot>     | none           | of the files, as they are              |
| .. with --lines     | each line, after an <eot>     | each           | of the files, as they are              |

Words are what stands between white space. A file without --lines is scored as by lm-evaluation-harness. Behind ± is the
standard error: that of the mean over runs of the model's context in tokens, or over documents where they are shorter.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from gpt1_ds import tasks
from gpt1_ds.base.errors import ConfigError, DataError, command, near
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.data.manifest import MANIFEST, read_manifest
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.model.perplexity import sum_and_error, token_nll
from gpt1_ds.runs.trained import load_gpt, rebuild, run_tokenizer
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks.predicting import predict
from gpt1_ds.tasks.scores import majority_score, scores_by_part, task_metrics
from gpt1_ds.tasks.zero_shot import ZERO_SHOT_METRICS, zero_shot


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder (runs/NAME) or one of its checkpoints/step-*")
    parser.add_argument(
        "--data",
        type=Path,
        default="shards",
        metavar="PATH",
        help="shard directory, text file (UTF-8) or folder of .txt files (default: %(default)s)",
    )
    parser.add_argument(
        "--corpus", help="shards: one corpus of the validation split (default: each)"
    )
    parser.add_argument(
        "--lines", action="store_true", help="text: each line is a document, whose end is predicted"
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="TOKENS",
        help="step of the window; a smaller one gives each "
        "token more context and takes longer (default: the context, windows end to end)",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="score a fine-tuned run on --data: a labelled file of the task, "
        "or a folder with its dev file",
    )
    parser.add_argument(
        "--predict",
        action="store_true",
        help="label each line of stdin (fields between tabs) with a "
        "fine-tuned run; prints label, tab, line",
    )
    parser.add_argument(
        "--zero-shot",
        metavar="NAME",
        help="score a pre-trained run, as it is, on the task's folder "
        "--data: cola, sst2, race or dpr",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    args = parser.parse_args(argv)

    if args.task or args.predict:
        return score_task(args.run, args.task, None if args.predict else args.data)
    if args.zero_shot:
        return score_zero_shot(args.run, args.zero_shot, args.data)
    if not args.data.exists():
        raise DataError(
            f"--data {args.data}: not there; give a shard directory (data_prep.build_shards makes one), a "
            "text file or a folder of .txt files"
        )
    is_text = args.data.is_file() or (args.data.is_dir() and not (args.data / MANIFEST).exists())
    if args.corpus and is_text or args.lines and not is_text:
        raise ConfigError(
            f"{'--corpus' if is_text else '--lines'} does not go with --data {args.data}, "
            f"{'plain text' if is_text else 'a shard directory'}; leave it out"
        )
    model, state, folder = load_gpt(args.run)
    tokenizer, n_ctx = run_tokenizer(folder, state), model.config.n_ctx
    stride = n_ctx if args.stride is None else args.stride
    if not 1 <= stride <= n_ctx:
        raise ConfigError(f"--stride {stride}: must be 1 to {n_ctx}, the model's context")
    model.to(collectives.device())
    texts = (
        [read_text(args.data, args.lines, tokenizer)]
        if is_text
        else read_shards(args.data, args.corpus, tokenizer)
    )
    for text in texts:
        nll_T = token_nll(model, text.documents, stride, text.name)
        nats, error = sum_and_error(nll_T, text.documents, n_ctx)
        tokens, bits = len(nll_T), math.log(2) * text.bytes
        print(
            f"{folder.name} on {text.name}, stride {stride}: {nats / tokens:.4f} ± {error / tokens:.4f} nats a token"
        )
        print(perplexity("token", nats / tokens, error / tokens, f"{tokens:,} tokens"))
        if text.words is None:
            print(
                "  word perplexity: this tokenizer's tokens do not tell the words; give --data the text itself"
            )
        else:
            words = text.words + text.ends
            print(
                perplexity(
                    "word",
                    nats / words,
                    error / words,
                    f"{text.words:,} words and {text.ends:,} ends",
                )
            )
        print(f"  bits per byte    {nats / bits:12.4f} ± {error / bits:.4f}, {text.bytes:,} bytes")


def perplexity(unit: str, nats: float, error: float, counted: str) -> str:
    mean = math.exp(min(nats, 700.0))  # float64 ends at e^709
    return f"  {unit + ' perplexity':16} {mean:12.4f} ± {mean * error:.4f}, {counted}"


def score_task(run: str, name: str | None, data: Path | None) -> None:
    """Metrics on `data` of a fine-tuned run's best weights; without `data`, labels for the lines of stdin."""
    best = Path(run) / "best"
    folder = find_checkpoint(best if best.is_dir() else run)
    weights, state = load_weights(folder)
    model, task = rebuild(weights, state, folder)
    if name and name != state["task"]["name"]:
        trained, task = task, tasks.build(TaskConfig(name=name))
        if (task.kind, task.classes) != (trained.kind, trained.classes):
            raise ConfigError(
                f"--task {name}: {folder} was trained for {state['task']['name']}, with other labels"
            )
    tokenizer = run_tokenizer(folder, state)
    if data is None:
        lines = [line.rstrip("\r\n") for line in sys.stdin]
        examples = [
            task.from_line(line, f"stdin line {number}") for number, line in enumerate(lines, 1)
        ]
    else:
        examples = task.read(data, "dev")
    encoded = task.encode(examples, tokenizer, model.gpt.config.n_ctx)
    predictions = predict(model, task, encoded, tokenizer.special_ids, 32, state["task"]["name"])
    if data is None:
        print(
            "".join(
                f"{task.show(mine)}\t{line}\n"
                for mine, line in zip(predictions, lines, strict=True)
            ),
            end="",
        )
    else:
        gold, parts = (
            [example.label for example in examples],
            [example.part for example in examples],
        )
        print_scores(
            f"{folder} on {data}", task_metrics(task.metrics, gold, predictions), len(examples)
        )
        for part, scores in scores_by_part(task.metrics, "dev", parts, gold, predictions).items():
            print_scores(f"  {part}", scores, parts.count(part.removeprefix("dev_")))


def score_zero_shot(run: str, name: str, data: Path) -> None:
    """Metrics of a pre-trained run on a task it was never trained for."""
    model, state, folder = load_gpt(run)
    model.to(collectives.device())
    gold, predicted = zero_shot(model, run_tokenizer(folder, state), name, data)
    scores = task_metrics(ZERO_SHOT_METRICS[name], gold, predicted)
    majority = majority_score(ZERO_SHOT_METRICS[name][0], gold, gold)
    print_scores(f"{folder} on {data}, zero-shot", scores | {"majority": majority}, len(gold))


def print_scores(title: str, scores: dict[str, float], examples: int) -> None:
    print(
        f"{title}: {', '.join(f'{name} {score:.4f}' for name, score in scores.items())}; {examples:,} examples"
    )


@dataclass(frozen=True)
class Text:
    """Something to score, and what is counted in it."""

    name: str
    documents: list[np.ndarray]
    """Ids of each; the first is context only."""
    words: int | None
    ends: int
    """Ends of documents among the predicted tokens."""
    bytes: int


def read_shards(root: Path, corpus: str | None, tokenizer: Tokenizer) -> Iterator[Text]:
    """Each corpus of the validation split, or only `corpus`."""
    manifest = read_manifest(root)
    corpora = manifest.splits.get("valid", {})
    if corpus and corpus not in corpora:
        raise DataError(
            f"--corpus {corpus}: not in the validation split of {root}; {near(corpus, corpora)}"
        )
    if tokenizer.sha256 != manifest.tokenizer["sha256"]:
        raise DataError(
            f"--data {root}: made with another tokenizer than the run's; build shards with that one"
        )
    names = [name for name, entry in corpora.items() if entry.tokens > 1 and corpus in (None, name)]
    if not names:
        raise DataError(
            f"--data {root}: no tokens in the validation split; build shards with --validation"
        )
    for name in names:
        stream = TokenStream(root, manifest, "valid", name)
        ids_T = stream.read(np.zeros(1, np.int64), stream.tokens)[0]
        is_end_T = ids_T == tokenizer.special_ids["eot"]
        words = None
        if tokenizer.kind == "sentencepiece":  # OpenAI's decodes "it's." as "it ' s ."
            words = sum(
                len(tokenizer.decode(part_T).split())
                for part_T in np.split(ids_T, np.flatnonzero(is_end_T))
            )
        text_bytes = manifest.preparation["corpora"][name]["text"]["valid"]["text_bytes"]
        yield Text(
            f"{name} (validation split of {root})",
            [ids_T],
            words,
            int(is_end_T[1:].sum()),
            text_bytes,
        )


def read_text(path: Path, lines: bool, tokenizer: Tokenizer) -> Text:
    """A file, or the .txt files below a folder."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    texts = []
    for file in files:
        try:
            texts.append(file.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            raise DataError(f"--data {file}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"--data {file}: not UTF-8 text (byte {error.start}); convert it"
            ) from error
        if "\0" in texts[-1]:
            raise DataError(f"--data {file}: binary, not UTF-8 text; give a text file")
    parts = [line for text in texts for line in text.split("\n")] if lines else texts
    eot = [tokenizer.special_ids["eot"]]
    documents = [np.array(eot + ids + eot * lines) for ids in tokenizer.encode_batch(parts) if ids]
    if not documents:
        raise DataError(
            f"--data {path}: holds no text; give a shard directory, a text file or a folder of .txt files"
        )
    words, text_bytes = (
        sum(map(len, parts)) for parts in (map(str.split, texts), map(str.encode, texts))
    )
    return Text(str(path), documents, words, len(documents) * lines, text_bytes)


cli = command(main, __name__)
