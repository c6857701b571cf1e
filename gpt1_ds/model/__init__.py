"""The language model: its definition, fast kernels, evaluation and sampling.

May import: data, distributed, base.

Files in reading order:

- `gpt`: the model of the paper, its LSTM ablation, and the initial weights
- `kernels`: fast versions of dropout, attention, GELU, linear layers, and head + loss
- `perplexity`: validation loss in training, and the likelihood of whole documents
- `sampling`: continues prompts token by token
- `inspection`: states between the blocks, weights of attention
"""
