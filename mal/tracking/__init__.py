"""Trackers: a chain's folder mirrored into TensorBoard, W&B and MLflow, beside the chain and never in its way."""
