"""What a chain keeps on disk: run folder, ledger of labels, heartbeat, checkpoints, the copy of the code."""
