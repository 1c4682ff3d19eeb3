"""Slurm: cluster profiles, the job that runs a chain, and a local Slurm for tests."""
