"""Scripts that print ratios: ours against the usual way, and against the floor (`python -m benchmarks.NAME`)."""
