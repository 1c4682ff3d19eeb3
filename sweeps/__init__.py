"""Sweeps: plan, launch, watch and cancel chains of rounds."""
