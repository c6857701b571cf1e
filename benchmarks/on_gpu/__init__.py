"""The parts of `benchmarks/gpu.py`. Files in reading order:

- `rows`: what is measured and checked, in the order of its value
- `running`: the rows in child processes, each with a bound, until the deadline
- `worker`: a child process, which works one row after the other
- `numerics`, `training`, `ranks`: checks of the arithmetic, of whole steps, of processes
- `speed`, `peers`, `loop`: tokens a second of single steps and of the real training loop
- `corpus`: shards of random tokens with GPT-1's vocabulary
- `wheels`: packages that the machine lacks
- `report`: the files OUT.json and OUT.md

The first three and the last two need nothing but the standard library.
"""
