"""The process and its machine: device, ranks, signals, memory."""
