"""GPT-1 (Radford et al. 2018) as a distributed training system on DeepSpeed."""
