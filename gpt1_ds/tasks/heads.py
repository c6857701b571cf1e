"""The task head on top of the decoder, and the joint objective of fine-tuning.

Radford et al. 2018, sections 3.2 and 3.3:

    L3 = task_coef * L2 + lm_coef * L1

L2 is the mean task loss over examples (token classification: over labelled tokens), weighted by
class if `task.class_weights` is set. L1 is the mean negative log-likelihood of the next token over
all tokens, or with `task.lm_mean=sequence` the mean over all sequences of their own means, as in
the released code. It includes special tokens but not padding. Both means are over the global batch
and do not depend on the number of ranks or micro-steps. The paper's lambda is `lm_coef` (with
`task_coef=1`).

Shapes: B examples, S sequences an example, T tokens, C = n_embd, K classes, N = B * S.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1_ds.data.order import mix
from gpt1_ds.model.gpt import GPT, SITES, pass_over_defaults
from gpt1_ds.model.kernels import dropout, keys_of_places
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks.examples import IGNORE


class TaskOutput(NamedTuple):
    """The output of `TaskModel`, all float32."""

    task_loss: Tensor
    """Sum over the examples, or over the labelled tokens, of the micro-batch."""
    lm_loss: Tensor
    """Sum over all predicted tokens, or over the means of all sequences."""
    logits: Tensor


class TaskModel(nn.Module):
    """The decoder with one linear layer on the hidden states of its last block.

    | kind                                     | state                            | logits  |
    |------------------------------------------|----------------------------------|---------|
    | classification, entailment, similarity   | at `<e>`, summed over sequences  | (B, K)  |
    | multiple_choice                          | at `<e>` of each answer          | (B, S)  |
    | token_classification                     | of every token                   | (B,T,K) |

    The loss is the cross-entropy of the logits, times the weight of the label's class where there
    are `class_weights`. If the head has only one output (a score), it is the squared error.
    """

    class_weights: Sequence[float] | None = None
    lm_mean = "token"
    """`task.lm_mean`."""

    def __init__(self, gpt: GPT, kind: str, n_outputs: int, pool: str, clf_pdrop: float):
        super().__init__()
        self.gpt = gpt
        self.kind = kind
        self.pool = pool
        self.clf_pdrop = clf_pdrop
        self.head = nn.Linear(gpt.config.n_embd, n_outputs)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def initial_values(self) -> Iterator[tuple[str, Tensor]]:
        """What the constructors set each parameter to: the decoder's, then the head's."""
        for name, value in self.gpt.initial_values():
            yield f"gpt.{name}", value
        pass_over_defaults(self.head)
        yield "head.weight", torch.empty(self.head.weight.shape).normal_(std=0.02)
        yield "head.bias", torch.zeros(self.head.bias.shape)

    def forward(
        self,
        ids_BST: Tensor,
        end_BS: Tensor,
        targets: Tensor,
        lm_targets_BST: Tensor | None = None,
        dropout_keys_BS2: Tensor | None = None,
    ) -> "TaskOutput":
        """Losses and logits of a micro-batch; see `batches.Batch` for the shapes.

        Without `lm_targets_BST` the language-modelling loss is 0, and the logits over the
        vocabulary are not computed. In training every sequence needs a dropout key.
        """
        B, S, T = ids_BST.shape
        lm_targets_NT = None if lm_targets_BST is None else lm_targets_BST.view(B * S, T)
        keys_N2 = None if dropout_keys_BS2 is None else dropout_keys_BS2.view(B * S, 2)
        hidden_NTC, nll_NT = self.gpt(
            ids_BST.view(B * S, T), lm_targets_NT, dropout_keys_B2=keys_N2
        )
        hidden_BSTC = hidden_NTC.view(B, S, T, -1)
        sites = 2 + SITES * len(self.gpt.blocks)  # those of the decoder, then that of the head
        keys_B2 = None
        if self.training:
            assert dropout_keys_BS2 is not None
            keys_B2 = keys_of_places(dropout_keys_BS2[:, 0], sites, ids_BST.device)[-1]
        logits = self._logits(hidden_BSTC, end_BS, keys_B2).float()
        # Not a buffer: the engine would round it to the precision of the model.
        weights_K = logits.new_tensor(self.class_weights) if self.class_weights else None
        if self.kind == "token_classification":
            task_loss = F.cross_entropy(
                logits.flatten(0, 1),
                targets.flatten(),
                weight=weights_K,
                ignore_index=IGNORE,
                reduction="sum",
            )
        elif logits.shape[-1] == 1:
            task_loss = torch.where(targets.isnan(), 0.0, logits - targets).square().sum()
        else:
            if weights_K is not None:
                targets = targets * weights_K
            task_loss = -(targets * logits.log_softmax(-1)).sum()
        lm_loss = torch.zeros_like(task_loss)
        if nll_NT is not None and lm_targets_NT is not None:
            if self.lm_mean == "sequence":
                nll_NT = nll_NT / (lm_targets_NT != IGNORE).sum(1, keepdim=True).clamp(min=1)
            lm_loss = nll_NT.sum()
        return TaskOutput(task_loss, lm_loss, logits)

    def _logits(self, hidden_BSTC: Tensor, end_BS: Tensor, keys_B2: Tensor | None) -> Tensor:
        if self.kind == "token_classification":
            return self.head(dropout(hidden_BSTC[:, 0], self.clf_pdrop, keys_B2))
        B, S, _, C = hidden_BSTC.shape
        position_BS = end_BS if self.pool == "last" else torch.zeros_like(end_BS)
        state_BSC = hidden_BSTC.gather(2, position_BS[:, :, None, None].expand(B, S, 1, C))[:, :, 0]
        if self.kind == "multiple_choice":
            # All answers of a question have the same dropout mask, as in OpenAI's code. Different
            # masks would favour some answers.
            mask_BC = dropout(torch.ones_like(state_BSC[:, 0]), self.clf_pdrop, keys_B2)
            return self.head(state_BSC * mask_BC[:, None])[:, :, 0]
        return self.head(dropout(state_BSC.sum(1), self.clf_pdrop, keys_B2))


def dropout_keys(seed: int, step: int, examples: Sequence[int], n_sequences: int) -> Tensor:
    """A key (B, S, 2) int32 for each sequence of a step's `examples`.

    It depends only on seed, step, example and sequence. So on a CPU dropout is the same on any
    number of ranks. Without examples, it returns the keys of one blank example.
    """
    places_B1 = np.array([*examples] or [-1])[:, None]
    keys_BS = mix(seed, 5, step, places_B1, np.arange(n_sequences))
    return torch.from_numpy(keys_BS.view(np.int32).reshape(len(places_B1), n_sequences, 2))


@dataclass(frozen=True)
class Counts:
    """Number of terms of the two losses in a global batch: the divisors of the two means."""

    targets: float
    """With class weights it is the sum of the weights of the labels."""
    lm_targets: int
    """With `task.lm_mean=sequence` it is the number of sequences."""

    @property
    def divisor(self) -> float:
        """That of the task loss: a batch may have no labelled token, or only labels of weight 0."""
        return self.targets or 1


def objective(task_loss: Tensor, lm_loss: Tensor, counts: Counts, config: TaskConfig) -> Tensor:
    """The contribution of a micro-step to L3. L3 is the sum over all micro-steps and ranks."""
    task_part = config.task_coef * task_loss / counts.divisor
    lm_part = config.lm_coef * lm_loss / max(1, counts.lm_targets)
    return task_part + lm_part
