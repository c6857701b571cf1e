"""`gpt1_ds.load`: a trained run as one Python object.

    model = gpt1_ds.load("runs/gpt1")
    model.score(["He went to the river."])                       # nats a token, as gpt1_ds.eval
    model.generate(["The captain"], max_new_tokens=40, seed=1)   # as gpt1_ds.generate
    gpt1_ds.load("runs/sst2").predict(["a fine film"])           # as gpt1_ds.eval --predict

A text begins with `<eot>`, as a document does in training. In place of a text, its token ids may be
given; they are taken as they are. The letters of the shapes are those of `gpt1_ds/model/gpt.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt1_ds.base.arguments import SEED
from gpt1_ds.base.bounds import COUNT, COUNT_OR_ZERO, NUMBER, Bounds
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.inspection import attention_weights, hidden_states
from gpt1_ds.model.kernels import linear
from gpt1_ds.model.perplexity import token_nll
from gpt1_ds.model.sampling import NEW_TOKENS, SAMPLES, TOP_P, Sampling, generate
from gpt1_ds.runs.exported import is_exported, load_exported
from gpt1_ds.runs.fine_tuned import best_checkpoint, temperature_of
from gpt1_ds.runs.inputs import (
    Given,
    Text,
    check_number,
    device_of,
    documents,
    dtype_of,
    examples,
    several,
)
from gpt1_ds.runs.remote_run import fetch_checkpoint
from gpt1_ds.runs.trained import build_gpt, build_task_model, run_tokenizer
from gpt1_ds.tasks import Encoded, Task
from gpt1_ds.tasks.batches import collate, scoring_batches
from gpt1_ds.tasks.heads import TaskModel
from gpt1_ds.tasks.predicting import logits_of_words
from gpt1_ds.tasks.probabilities import label_of, outcome
from gpt1_ds.tasks.similarity import ScoredSimilarity
from gpt1_ds.tasks.token_classification import OUTSIDE, TokenClassification

BATCH_SIZE = 32
Probabilities = dict[str, float] | list[dict[str, float]] | None


class Prediction(NamedTuple):
    """The answer of a fine-tuned run to one example."""

    label: str | float | list[str]
    """The class as published; the score, for tasks of scores; the tag of each word."""
    probabilities: Probabilities
    """Of each class, or of each class for each word; None if the head gives one number."""


class TrainedModel:
    """A trained run: its tokenizer, its decoder, and its task if it is fine-tuned."""

    def __init__(
        self,
        gpt: GPT,
        tokenizer: Tokenizer,
        folder: Path,
        task: Task | None,
        head: TaskModel | None,
        temperature: float = 1.0,
    ):
        """`gpt` is the decoder of `head`, if there is one. Use `load`."""
        self.gpt = gpt
        """The decoder, a torch module in eval mode."""
        self.tokenizer = tokenizer
        self.folder = folder
        """The checkpoint or folder that it came from."""
        self.task = task
        """Kind, classes and metrics; None for a pre-training run."""
        self.temperature = temperature
        """Divides the logits of `predict`, as in gpt1_ds.eval: that of the run's calibration."""
        self._task_model = head

    def __repr__(self) -> str:
        shape = self.gpt.config
        kind = f"fine-tuned, {self.task.kind}" if self.task else "pre-trained"
        return (
            f"<TrainedModel {self.folder}: {shape.n_layer} layers x {shape.n_embd}, context "
            f"{shape.n_ctx}, {kind}, {self.gpt.wte.dtype} on {self.gpt.wte.device}>"
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without any control token."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; control tokens are left out."""
        return self.tokenizer.decode(ids)

    @torch.no_grad()
    def logits(self, texts: Iterable[Text], batch_size: int = BATCH_SIZE) -> list[Tensor]:
        """For each text its logits (T, V) float32 on the CPU.

        Row t is about the token after token t, where token 0 is `<eot>`: the last row is about the
        token that follows the text.
        """
        found: dict[int, Tensor] = {}
        for indices, ids_BT, lengths in self._batches(texts, batch_size):
            x_BTC, _ = self.gpt(ids_BT)
            for index, x_TC, length in zip(indices, x_BTC, lengths, strict=True):
                logits_TV = linear(x_TC[:length], self.gpt.wte)
                found[index] = logits_TV[:, : self.gpt.config.vocab_size].float().cpu()
        return [found[index] for index in range(len(found))]

    def hidden(
        self, texts: Iterable[Text], layer: int = -1, batch_size: int = BATCH_SIZE
    ) -> list[Tensor]:
        """For each text its states (T, C) float32 on the CPU.

        Layer 0 is the sum of the embeddings, layer l the output of block l; -1 is the last one.
        """
        layer = self._layer(layer, len(self.gpt.blocks) + 1)
        found: dict[int, Tensor] = {}
        for indices, ids_BT, lengths in self._batches(texts, batch_size):
            x_BTC = hidden_states(self.gpt, ids_BT)[layer].float().cpu()
            for index, x_TC, length in zip(indices, x_BTC, lengths, strict=True):
                found[index] = x_TC[:length]
        return [found[index] for index in range(len(found))]

    def attention(
        self, texts: Iterable[Text], layer: int = -1, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """The weights (B, H, T, T) float32 of a block's attention, on the CPU.

        Block 0 is the first. Row t of a head is how much token t looks at each token up to itself,
        where token 0 is `<eot>`. T is that of the longest text; shorter texts have zeros behind
        their end.
        """
        if self.gpt.config.kind != "transformer":
            raise ConfigError(f"{self.folder}: an LSTM has no attention; load another run")
        layer = self._layer(layer, len(self.gpt.blocks))
        found: list[tuple[int, Tensor]] = []
        for indices, ids_BT, lengths in self._batches(texts, batch_size):
            weights_BHTT = attention_weights(self.gpt, ids_BT, layer).cpu()
            for index, weights_HTT, length in zip(indices, weights_BHTT, lengths, strict=True):
                found.append((index, weights_HTT[:, :length, :length]))
        T = max((weights_HTT.shape[-1] for _, weights_HTT in found), default=0)
        padded_BHTT = torch.zeros(len(found), self.gpt.config.n_head, T, T)
        for index, weights_HTT in found:
            length = weights_HTT.shape[-1]
            padded_BHTT[index, :, :length, :length] = weights_HTT
        return padded_BHTT

    def token_nats(
        self, texts: Iterable[Text], stride: int | None = None, batch_size: int | None = None
    ) -> list[np.ndarray]:
        """For each text the negative log-likelihood of each of its tokens, in nats.

        The first token is predicted after `<eot>`. A text may be longer than the context:
        windows of `stride` new tokens (None: the whole context) go over it, as in gpt1_ds.eval.
        """
        n_ctx = self.gpt.config.n_ctx
        stride = n_ctx if stride is None else stride
        check_number("stride", stride, Bounds(1, n_ctx))
        if batch_size is not None:
            check_number("batch_size", batch_size, COUNT)
        ids = documents(several(texts, "texts"), "texts", self.tokenizer)
        for index, document in enumerate(ids):
            if len(document) < 2:
                raise ConfigError(f"texts[{index}] has no tokens to score; leave it out")
        if not ids:
            return []
        arrays = [np.array(document) for document in ids]
        sizes = {} if batch_size is None else {"batch_tokens": batch_size * n_ctx}
        nats_T = token_nll(self.gpt, arrays, stride, "scoring", **sizes)
        return np.split(nats_T, np.cumsum([len(document) - 1 for document in ids])[:-1])

    def score(
        self, texts: Iterable[Text], stride: int | None = None, batch_size: int | None = None
    ) -> list[float]:
        """For each text the mean of `token_nats`: nats a token."""
        scored = self.token_nats(texts, stride, batch_size)
        return [float(nats_T.mean(dtype=float)) for nats_T in scored]

    def generate(
        self,
        prompts: Iterable[Text] = ("",),
        max_new_tokens: int = 120,
        num_samples: int = 1,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Each prompt with its continuation, as gpt1_ds.generate prints it.

        An empty prompt begins a document. With several samples, those of the first prompt come
        first.
        """
        check_number("max_new_tokens", max_new_tokens, NEW_TOKENS)
        check_number("num_samples", num_samples, SAMPLES)
        check_number("temperature", temperature, NUMBER)
        check_number("top_k", top_k, COUNT_OR_ZERO)
        check_number("top_p", top_p, TOP_P)
        check_number("seed", seed, SEED)
        sequences: list[list[int]] = []
        for ids in documents(several(prompts, "prompts"), "prompts", self.tokenizer):
            sequences += [[*ids] for _ in range(num_samples)]
        sampling, special_ids = Sampling(temperature, top_k, top_p), self.tokenizer.special_ids
        # `generate` works on copies of the texts, so these can change while it runs.
        for row, token in generate(
            self.gpt, special_ids, sequences, max_new_tokens, sampling, seed
        ):
            sequences[row].append(token)
        return [self.tokenizer.decode(ids) for ids in sequences]

    @torch.no_grad()
    def predict(self, inputs: Iterable[Given], batch_size: int | None = None) -> list[Prediction]:
        """The label and the probabilities of each example; only for a fine-tuned run.

        | kind of the task     | an example                                               |
        |----------------------|----------------------------------------------------------|
        | classification       | a text                                                   |
        | entailment           | (premise, hypothesis)                                    |
        | similarity           | (first, second)                                          |
        | multiple_choice      | (context, question, answer, answer, ..), or without the  |
        |                      | question if the task has none                            |
        | token_classification | a sentence, whose words are between spaces; or its words |

        The probabilities are calibrated if the run has a calibration.json (gpt1_ds.eval
        --calibrate). `batch_size` None: the batches of gpt1_ds.eval, so that every bit of the
        logits is the same.
        """
        if self.task is None or self._task_model is None:
            raise ConfigError(
                f"{self.folder}: a pre-training run, which has no task to predict; load a "
                "fine-tuned run, or use score, logits or generate"
            )
        special_ids = self.tokenizer.special_ids
        encoded = self.task.encode(
            examples(inputs, self.task), self.tokenizer, self.gpt.config.n_ctx
        )
        batches = scoring_batches(encoded)
        if batch_size is not None:
            batches = _in_batches([example.length for example in encoded], batch_size)
        found: dict[int, Prediction] = {}
        for indices in batches:
            batch = collate([encoded[index] for index in indices], special_ids, encoded[0])
            batch = batch.to(self.gpt.wte.device)
            _, _, logits = self._task_model(batch.ids_BST, batch.end_BS, batch.targets)
            for index, row in zip(indices, logits.tolist(), strict=True):
                found[index] = _prediction(self.task, row, encoded[index], self.temperature)
        return [found[index] for index in range(len(found))]

    def _batches(
        self, texts: Iterable[Text], batch_size: int
    ) -> Iterator[tuple[list[int], Tensor, list[int]]]:
        """Places of texts, their ids (B, T) padded on the right, and their lengths.

        Attention is causal, so that padding on the right changes nothing.
        """
        n_ctx, device = self.gpt.config.n_ctx, self.gpt.wte.device
        ids = documents(several(texts, "texts"), "texts", self.tokenizer)
        for index, document in enumerate(ids):
            if len(document) > n_ctx:
                raise ConfigError(
                    f"texts[{index}] has {len(document)} tokens, and the context {n_ctx}; cut the "
                    "text, or give a part of its ids"
                )
        for indices in _in_batches([len(document) for document in ids], batch_size):
            rows = [torch.tensor(ids[index]) for index in indices]
            pad = self.tokenizer.special_ids["pad"]
            ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad)
            yield indices, ids_BT.to(device), [len(row) for row in rows]

    def _layer(self, layer: int, count: int) -> int:
        if not -count <= layer < count:
            raise ConfigError(
                f"layer is {layer}; {self.folder} has 0 to {count - 1}, or -1 for the last"
            )
        return layer % count


def load(
    run: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "float32",
    cache: str | None = None,
) -> TrainedModel:
    """Load a trained run; of a fine-tuned run the weights of its best score.

    `run` is a run folder (runs/NAME), its best/, one of its checkpoints, a folder that
    gpt1_ds.export made or imported, or the address (http, https, s3, ..) of a run or checkpoint.
    `device` None: the GPU if there is one. `dtype`: float32, bfloat16 or float16. `cache` is the
    folder for what is downloaded (None: gpt1-runs-UID in the folder of temporary files). Every file
    of a checkpoint is checked by its hash. Raises UserError, whose text is one line.
    """
    place, kind = device_of(device), dtype_of(dtype)
    if isinstance(run, str) and "://" in run:
        run = fetch_checkpoint(run, cache)
    folder = Path(run)
    if is_exported(folder):
        weights, state, tokenizer = load_exported(folder)
    else:
        folder = best_checkpoint(folder)
        weights, state = load_weights(folder)
        tokenizer = run_tokenizer(folder, state)
    if state.task is None:
        gpt = build_gpt(weights, state, folder).to(place, kind)
        return TrainedModel(gpt, tokenizer, folder, None, None)
    model, task = build_task_model(weights, state, folder)
    model.to(place, kind)
    return TrainedModel(model.gpt, tokenizer, folder, task, model, temperature_of(folder))


def _in_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places in batches of similar lengths, which need little padding."""
    check_number("batch_size", batch_size, COUNT)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def _prediction(task: Task, logits: list[Any], encoded: Encoded, temperature: float) -> Prediction:
    """From the logits (K), or (T, K) of a task of tags."""
    if isinstance(task, TokenClassification):
        rows = outcome(task, logits_of_words(logits, encoded), encoded, temperature)
        # A word without a sub-token gets the tag `O`, whatever the model says.
        rows[np.isnan(rows[:, 0])] = np.eye(len(task.classes))[task.classes.index(OUTSIDE)]
        return Prediction(label_of(task, rows), [_named(task, row) for row in rows])
    values = outcome(task, logits, encoded, temperature)
    label = label_of(task, values)
    if isinstance(task, ScoredSimilarity):
        return Prediction(label, None)
    return Prediction(task.show(label), _named(task, values))


def _named(task: Task, probabilities_K: np.ndarray) -> dict[str, float]:
    return dict(zip(task.classes, probabilities_K.tolist(), strict=True))
