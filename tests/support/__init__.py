"""What several tests share: pools of ranks, a Slurm cluster, servers, built shards."""
