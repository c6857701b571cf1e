"""The DeepSpeed engine: how it is built, what it is made of, and what is read from it.

May import `model`, `settings`, `distributed` and `base`. Files in reading order:

- `start`: the only `deepspeed.initialize`, and what a run's DeepSpeed JSON needs of the machine
- `building`: parameters that get their memory one at a time
- `compiling`: compiled blocks, and blocks as CUDA graphs
- `determinism`: `train.deterministic`, the same bits from each start
- `mechanics`: the shipped DeepSpeed JSON that a run takes by itself
- `optimizer`: parameter groups, the two Adams, the learning rate of each step
- `defaults`: what DeepSpeed gets where the JSON leaves it open
- `reduction`: the gradients of ZeRO-1 and 2, added up over the ranks
- `partitions`: the buckets in which ZeRO-3 gathers weights and adds up gradients
- `update`: the optimizer step in few operators, and which steps were skipped
- `timing`: tokens a second and MFU, the parts of a step, the profile of one step
- `peak`: the peak rate of a device's matrix products
- `readings`: loss scale and norms of each block, for the log
- `memory`: bytes that a rank needs, as a formula
- `traffic`: bytes that a step sends, as a formula and as a count
- `host_time`: seconds of the host for a step, measured, by number of ranks
- `counting`: operators, waits and messages of a block of code
- `internals`: every change to the behaviour of DeepSpeed and torch, besides those of
  `reduction`, `partitions` and `update`
"""
