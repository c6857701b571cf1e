"""Helpers for several tests: pools of ranks, a Slurm cluster, servers, shards."""
