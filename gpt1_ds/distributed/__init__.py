"""The ranks of a run: their numbers, how they connect, and how they communicate.

May import `base`. The files, in reading order:

- `environment`: rank and world size, read from the launcher's variables.
- `descriptors`: the limit of open files has room for the connections of all ranks.
- `rendezvous`: the ranks connect to MASTER_ADDR and form the process group.
- `agreement`: before that, the ranks compare their settings and share their errors.
- `collectives`: the few collectives that the rest of the code uses.
- `heartbeat`: a counter of each rank, to find the rank that hangs.
- `waiting`: since when this rank waits for its peers.
- `nccl`: how long NCCL waits for a peer, so that the heartbeat ends a run before it does.
- `launchers`: which ancestors of this process are launchers.
- `preemption`: turns signals and a dead launcher into one stop flag.
- `console`: what a run prints: lines, warnings, progress.
"""
