"""Task heads around the decoder, and the joint objective of fine-tuning (Radford et al. 2018, sections 3.2 and 3.3).

    L3 = task_coef * L2 + lm_coef * L1

L2 is the mean task loss over examples (token classification: over labelled tokens), L1 the mean negative
log-likelihood of the next token over real tokens, special ones included and padding not. Both means are over the
global batch, whatever its division into ranks and micro-steps. The paper's lambda is `lm_coef` (with `task_coef=1`).
B examples, S sequences an example, T tokens, C = n_embd, K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1_ds.config import TaskConfig
from gpt1_ds.model import GPT
from gpt1_ds.tasks import IGNORE


class TaskModel(nn.Module):
    """The decoder with one linear layer on the states of its last block.

    | kind                                     | state                            | logits  |
    |------------------------------------------|----------------------------------|---------|
    | classification, entailment, similarity   | at `<e>`, summed over sequences  | (B, K)  |
    | multiple_choice                          | at `<e>` of each answer          | (B, S)  |
    | token_classification                     | of every token                   | (B,T,K) |
    """

    def __init__(self, gpt: GPT, kind: str, n_classes: int, pool: str, clf_pdrop: float):
        super().__init__()
        self.gpt = gpt
        self.kind = kind
        self.pool = pool
        self.clf_dropout = nn.Dropout(clf_pdrop)
        self.head = nn.Linear(gpt.config.n_embd, 1 if kind == "multiple_choice" else n_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, ids_BST: Tensor, end_BS: Tensor, targets: Tensor, lm_targets_BST: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of task losses, sum of next-token losses, logits), all float32; a `Batch` says the shapes.

        Without `lm_targets_BST` the second is 0 and the vocabulary's logits are never computed.
        """
        B, S, T = ids_BST.shape
        lm_targets_NT = None if lm_targets_BST is None else lm_targets_BST.view(B * S, T)
        hidden_NTC, nll_NT = self.gpt(ids_BST.view(B * S, T), lm_targets_NT)
        hidden_BSTC = hidden_NTC.view(B, S, T, -1)
        logits = self._logits(hidden_BSTC, end_BS).float()
        if self.kind == "token_classification":
            task_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        else:
            task_loss = -(targets * logits.log_softmax(-1)).sum()
        lm_loss = torch.zeros_like(task_loss) if nll_NT is None else nll_NT.sum()
        return task_loss, lm_loss, logits

    def _logits(self, hidden_BSTC: Tensor, end_BS: Tensor) -> Tensor:
        if self.kind == "token_classification":
            return self.head(self.clf_dropout(hidden_BSTC[:, 0]))
        B, S, _, C = hidden_BSTC.shape
        position_BS = end_BS if self.pool == "last" else torch.zeros_like(end_BS)
        state_BSC = hidden_BSTC.gather(2, position_BS[:, :, None, None].expand(B, S, 1, C))[:, :, 0]
        if self.kind == "multiple_choice":
            # One dropout mask for all answers of a question, as in OpenAI's code: none is favoured by its mask.
            mask_B1C = self.clf_dropout(torch.ones_like(state_BSC[:, :1]))
            return self.head(state_BSC * mask_B1C)[:, :, 0]
        return self.head(self.clf_dropout(state_BSC.sum(1)))


@dataclass(frozen=True)
class Counts:
    """What the two means divide by: terms of a whole global batch."""

    targets: int
    lm_targets: int


def objective(task_loss: Tensor, lm_loss: Tensor, counts: Counts, config: TaskConfig) -> Tensor:
    """A micro-step's part of L3: these parts add up to it over micro-steps and ranks."""
    return config.task_coef * task_loss / max(1, counts.targets) + config.lm_coef * lm_loss / max(1, counts.lm_targets)
