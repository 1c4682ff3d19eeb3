"""What of the CUDA paths holds and how fast they are, on one GPU in at most eight minutes: `make gpu`."""
