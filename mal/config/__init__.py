"""A chain's configuration: its schema, its checks, and how a command line becomes one. Nothing here imports torch."""
