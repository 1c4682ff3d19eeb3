"""The one training loop, the one pass over images, and what they need: losses, optimisers, evaluation."""
