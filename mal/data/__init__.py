"""Datasets, their loaders and the augmentation: everything up to normalised batches on the device."""
