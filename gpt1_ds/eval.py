"""Score a run: perplexity on texts, metrics of tasks.

    python -m gpt1_ds.eval runs/gpt1 --data shards --corpus books
    python -m gpt1_ds.eval runs/gpt1 --data novel.txt --stride 128
    python -m gpt1_ds.eval runs/gpt1 --data news.en.heldout --lines
    python -m gpt1_ds.eval runs/sst2 --task sst2 --data SST-2/dev.tsv
    python -m gpt1_ds.eval runs/sst2 --task sst2 --data SST-2 --out dev.tsv
    python -m gpt1_ds.eval runs/sst2 --predict --probabilities < sentences.txt
    python -m gpt1_ds.eval runs/sst2 --calibrate
    python -m gpt1_ds.eval --ensemble runs/suite --task sst2 --data SST-2
    python -m gpt1_ds.eval runs/gpt1 --zero-shot race --data RACE

Three figures come from the same sum of nats: perplexity a token; perplexity a word, where the
predicted ends of documents count as words, as in the 1 Billion Word Benchmark; and bits a byte. The
last two do not depend on how a tokenizer divides the text, so that they compare models with
different tokenizers on the same text, if both fold case or neither does.

A shard directory: each corpus is one stream, as in training, and all ends in it are predicted; the
words are those of its decoded tokens, the bytes those of the tokenised text. A file or a folder of
.txt: each file follows an <eot>, and no end is predicted. With --lines: each line follows an <eot>,
and its end is predicted. Words and bytes are then those of the files, as they are.

Words are separated by white space. A file without --lines is scored as by lm-evaluation-harness.
Behind ± is the standard error: that of the mean over runs of the model's context in tokens, or
over documents where they are shorter.
"""

import argparse
import importlib
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    importlib.import_module("gpt1_ds")  # before torch, so that Ctrl-C ends with one line

import numpy as np

from gpt1_ds.base.arguments import numeric
from gpt1_ds.base.bounds import COUNT_OR_ZERO
from gpt1_ds.base.errors import ConfigError, DataError, command, near
from gpt1_ds.base.options import RUN_HELP, Parser, path
from gpt1_ds.data.manifest import MANIFEST, read_manifest
from gpt1_ds.data.opening import tell_of_line_breaks
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.perplexity import sum_and_error, token_nll
from gpt1_ds.runs.task_scoring import Asked, calibrate_run, predict_lines, print_scores, score_task
from gpt1_ds.runs.trained import load_gpt, run_tokenizer
from gpt1_ds.tasks import TASKS
from gpt1_ds.tasks.scores import majority_score, scores_by_part, task_metrics
from gpt1_ds.tasks.zero_shot import ZERO_SHOT_METRICS, zero_shot

MODES = ("predict", "calibrate", "task", "ensemble", "zero_shot")
OF_PREDICTIONS = ("task", "ensemble", "probabilities", "uncalibrated")
TAKES = {
    "predict": ("predict", *OF_PREDICTIONS),
    "calibrate": ("calibrate", "task", "data"),
    "task": ("data", "with_text", "out", *OF_PREDICTIONS),
    "ensemble": ("data", "with_text", "out", *OF_PREDICTIONS),
    "zero_shot": ("zero_shot", "data"),
    "text": ("data", "corpus", "lines", "stride"),
}
"""The options that go with each mode of the command."""
LARGEST_EXPONENT = 700.0
"""The largest float64 is about e^709."""


@dataclass(frozen=True)
class Text:
    """Documents to score, and the counts of their words, ends and bytes."""

    name: str
    documents: list[np.ndarray]
    """The ids of each document. The first id is only context and has no score."""
    words: int | None
    """None if the words cannot be counted from the tokens."""
    ends: int
    """Number of predicted tokens that end a document."""
    bytes: int


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    mode = next((name for name in MODES if getattr(args, name)), "text")
    for name in sorted(set(chain.from_iterable(TAKES.values()))):
        if getattr(args, name) and name not in TAKES[mode]:
            raise ConfigError(f"{_option(name)} does not go with {_option(mode)}; leave it out")
    if args.run is None and not args.ensemble:
        raise ConfigError("RUN is not set; give a run folder, or several with --ensemble")
    asked = Asked(
        runs=[args.run] * (args.run is not None) + (args.ensemble or []),
        is_ensemble=bool(args.ensemble),
        task=args.task,
        data=args.data,
        probabilities=args.probabilities,
        with_text=args.with_text,
        out=args.out,
        uncalibrated=args.uncalibrated,
    )
    if mode == "predict":
        predict_lines(asked)
        return
    if mode == "calibrate":
        calibrate_run(asked)
        return
    if args.data is None and mode != "text":
        raise ConfigError(f"--data is not set; give the file or folder for {_option(mode)}")
    args.data = args.data or Path("shards")
    if mode in ("task", "ensemble"):
        score_task(asked)
    elif mode == "zero_shot":
        score_zero_shot(args.run, args.zero_shot, args.data)
    else:
        score_text(args)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = parser.add_argument_group("what is scored").add_argument
    text(
        "--data",
        type=Path,
        metavar="PATH",
        help="shard directory, text file (UTF-8) or folder of .txt files (default: shards)",
    )
    text(
        "--corpus",
        metavar="NAME",
        help="shards: one corpus of the validation split (default: each)",
    )
    text(
        "--lines", action="store_true", help="text: each line is a document, whose end is predicted"
    )
    text(
        "--stride",
        type=numeric("--stride", int, COUNT_OR_ZERO),
        metavar="TOKENS",
        help="step of the window; a smaller one gives each "
        "token more context and takes longer (default: the context, windows end to end)",
    )
    task = parser.add_argument_group("tasks").add_argument
    task(
        "--task",
        metavar="NAME",
        help="score a fine-tuned run on --data: a labelled file of the task, or a folder with its "
        f"dev file; {', '.join(sorted(TASKS))}, or the run's own (default: perplexity)",
    )
    task(
        "--predict",
        action="store_true",
        help="label each line of stdin (fields between tabs) with a "
        "fine-tuned run; prints label, tab, line",
    )
    task(
        "--zero-shot",
        metavar="NAME",
        help="score a pre-trained run, as it is, on the task's folder --data: "
        f"{', '.join(ZERO_SHOT_METRICS)} (default: perplexity)",
    )
    _add_fine_tuned(parser)
    return parser


def _add_fine_tuned(parser: argparse.ArgumentParser) -> None:
    """The options of fine-tuned runs."""
    option = parser.add_argument_group("fine-tuned runs").add_argument
    option(
        "--probabilities",
        action="store_true",
        help="with --task, --ensemble or --predict: a column for the probability of each class; of "
        "similarity scores the score, of words that of their tag",
    )
    option(
        "--with-text",
        action="store_true",
        help="with --task or --ensemble: a column for each text",
    )
    option(
        "--out",
        type=path,
        metavar="FILE",
        help="with --task or --ensemble: the table of predictions (default: "
        "RUN/evaluation-DATA.tsv with --probabilities or --with-text, else none)",
    )
    option(
        "--ensemble",
        nargs="+",
        metavar="RUN",
        help="several runs of a task as one: the mean of their probabilities or scores; a suite's "
        "folder stands for its runs of --task (default: RUN alone)",
    )
    option(
        "--calibrate",
        action="store_true",
        help="fit one temperature for the probabilities on --data (default: the dev file of the "
        "run's task.data), and keep it in RUN/calibration.json",
    )
    option(
        "--uncalibrated",
        action="store_true",
        help="probabilities without the run's calibration.json",
    )


def score_text(args: argparse.Namespace) -> None:
    """Print perplexities and bits a byte of a pre-trained run on --data."""
    if not args.data.exists():
        raise DataError(
            f"--data {args.data}: not there; give a shard directory (data_prep.build_shards makes "
            "one), a text file or a folder of .txt files"
        )
    is_shards = args.data.is_dir() and (args.data / MANIFEST).exists()
    if args.corpus and not is_shards:
        raise ConfigError(f"--corpus does not go with --data {args.data}, plain text; leave it out")
    if args.lines and is_shards:
        raise ConfigError(
            f"--lines does not go with --data {args.data}, a shard directory; leave it out"
        )
    model, state, folder = load_gpt(args.run)
    tokenizer = run_tokenizer(folder, state)
    n_ctx = model.config.n_ctx
    stride = n_ctx if args.stride is None else args.stride
    if not 1 <= stride <= n_ctx:
        raise ConfigError(f"--stride {stride}: must be 1 to {n_ctx}, the model's context")
    model.to(collectives.device())
    texts: Iterable[Text]
    if is_shards:
        texts = read_shards(args.data, args.corpus, tokenizer)
    else:
        texts = [read_text(args.data, args.lines, tokenizer)]
    for text in texts:
        print_perplexities(model, text, stride, folder.name)
    if tokenizer.folds_case:
        print(
            "  the tokenizer folds case: a text and its capitals score alike, so compare with "
            "tokenizers that do so too (train_tokenizer --case keep makes a cased one)"
        )


def print_perplexities(model: GPT, text: Text, stride: int, checkpoint: str) -> None:
    n_ctx = model.config.n_ctx
    nll_T = token_nll(model, text.documents, stride, text.name)
    nats, error = sum_and_error(nll_T, text.documents, n_ctx)
    tokens = len(nll_T)
    bits = math.log(2) * text.bytes
    print(
        f"{checkpoint} on {text.name}, stride {stride}: "
        f"{nats / tokens:.4f} ± {error / tokens:.4f} nats a token"
    )
    print(perplexity("token", nats / tokens, error / tokens, f"{tokens:,} tokens"))
    if text.words is None:
        print(
            "  word perplexity: this tokenizer's tokens do not tell the words; "
            "give --data the text itself"
        )
    else:
        words = text.words + text.ends
        counted = f"{text.words:,} words and {text.ends:,} ends"
        print(perplexity("word", nats / words, error / words, counted))
    print(f"  bits per byte    {nats / bits:12.4f} ± {error / bits:.4f}, {text.bytes:,} bytes")


def perplexity(unit: str, nats: float, error: float, counted: str) -> str:
    mean = math.exp(min(nats, LARGEST_EXPONENT))
    return f"  {unit + ' perplexity':16} {mean:12.4f} ± {mean * error:.4f}, {counted}"


def score_zero_shot(run: str, name: str, data: Path) -> None:
    """Print the metrics of a pre-trained run on a task, without fine-tuning."""
    model, state, folder = load_gpt(run)
    model.to(collectives.device())
    answers = zero_shot(model, run_tokenizer(folder, state), name, data)
    gold, metrics = answers.gold, ZERO_SHOT_METRICS[name]
    scores = task_metrics(metrics, gold, answers.predicted)
    scores["majority"] = majority_score(metrics[0], gold, gold)
    print_scores(f"{folder} on {data}, zero-shot", scores, len(gold))
    by_part = scores_by_part(metrics, "", answers.parts, gold, answers.predicted)
    for part, of_part in by_part.items():
        part = part.removeprefix("_")
        print_scores(f"  {part}", of_part, answers.parts.count(part))
    if answers.note:
        print(f"  {answers.note}")


def read_shards(root: Path, corpus: str | None, tokenizer: Tokenizer) -> Iterator[Text]:
    """Yields each corpus of the validation split, or only `corpus`."""
    manifest = read_manifest(root)
    corpora = manifest.splits.get("valid", {})
    if corpus and corpus not in corpora:
        raise DataError(
            f"--corpus {corpus}: not in the validation split of {root}; {near(corpus, corpora)}"
        )
    if tokenizer.sha256 != manifest.tokenizer.get("sha256"):
        raise DataError(
            f"--data {root}: made with another tokenizer than the run's; build shards with that one"
        )
    tell_of_line_breaks(f"--data {root}", manifest, tokenizer)
    wanted = [corpus] if corpus else list(corpora)
    names = [name for name in wanted if corpora[name].tokens > 1]
    if not names:
        raise DataError(
            f"--data {root}: no tokens in the validation split; build shards with --validation"
        )
    for name in names:
        stream = TokenStream(root, manifest, "valid", name)
        ids_T = stream.read(np.zeros(1, np.int64), stream.tokens)[0]
        is_end_T = ids_T == tokenizer.special_ids["eot"]
        yield Text(
            name=f"{name} (validation split of {root})",
            documents=[ids_T],
            words=count_words(ids_T, is_end_T, tokenizer),
            ends=int(is_end_T[1:].sum()),
            bytes=manifest.preparation["corpora"][name]["text"]["valid"]["text_bytes"],
        )


def count_words(ids_T: np.ndarray, is_end_T: np.ndarray, tokenizer: Tokenizer) -> int | None:
    """Number of words of the decoded tokens.

    None for OpenAI's BPE, which decodes "it's." as "it ' s .".
    """
    if tokenizer.kind != "sentencepiece":
        return None
    documents = np.split(ids_T, np.flatnonzero(is_end_T))
    return sum(len(tokenizer.decode(ids.tolist()).split()) for ids in documents)


def read_text(path: Path, lines: bool, tokenizer: Tokenizer) -> Text:
    """A file, or the .txt files below a folder; with `lines` each line is a document."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    texts = [read_file(file) for file in files]
    parts = texts
    if lines:
        parts = list(chain.from_iterable(text.split("\n") for text in texts))
    eot = [tokenizer.special_ids["eot"]]
    end = eot if lines else []
    documents = [np.array(eot + ids + end) for ids in tokenizer.encode_batch(parts) if ids]
    if not documents:
        raise DataError(
            f"--data {path}: holds no text; give a shard directory, a text file "
            "or a folder of .txt files"
        )
    return Text(
        name=str(path),
        documents=documents,
        words=sum(len(text.split()) for text in texts),
        ends=len(documents) if lines else 0,
        bytes=sum(len(text.encode()) for text in texts),
    )


def read_file(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"--data {file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"--data {file}: not UTF-8 text (byte {error.start}); convert it"
        ) from error
    if "\0" in text:
        raise DataError(f"--data {file}: binary, not UTF-8 text; give a text file")
    return text


cli = command(main, __name__)
