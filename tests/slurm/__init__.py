"""Tests of slurm."""
