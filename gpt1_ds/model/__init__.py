"""The language model: its definition, fast kernels, evaluation and sampling.

May import: data, distributed, base.

Files in reading order:

- `gpt`: the model of the paper, its LSTM ablation, and the initial weights
- `kernels`: fast versions of dropout, attention, GELU, linear layers, and head + loss
- `loss`: the loss of rows of logits, in place
- `triton_loss`: the same as one kernel, for CUDA
- `perplexity`: validation loss in training, and the likelihood of whole documents
- `likelihood`: log-likelihoods of many short sequences, which ranks share out
- `sampling`: continues prompts token by token
- `inspection`: states between the blocks, weights of attention
"""
