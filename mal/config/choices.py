"""The words that a key of a chain's configuration may be; the standard library alone, as the shell completes them."""

CHOICES: dict[str, tuple[str | None, ...]] = {
    "loader": ("auto", "memory", "torch", "ffcv"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("fp32", "bf16"),
    "floor": ("auto", "on", "off"),
    "dataset.task": ("classification", "segmentation"),
    "dataset.resize": (None, "square", "stretch"),
    "dataset.exif": (None, "apply", "ignore"),
    "dataset.oracle": ("truth", "files"),
    "dataset.prepared": ("raw", "jpg", "mixed"),
    "minimax.epoch_of": ("pool", "labelled"),
    "minimax.optimizer": ("adam", "sgd"),
    "minimax.schedule": ("constant", "cosine", "inverse"),
    "minimax.prototypes": ("xavier", "uniform"),
    "minimax.d_input": ("features", "normalised"),
    "minimax.d_features": ("train", "eval"),
    "minimax.first": ("cross_entropy", "entropy", "discriminator"),
    "task.epoch_of": ("pool", "labelled"),
    "task.init": ("scratch", "from_f", "continue", "from_f_continue"),
    "task.optimizer": ("sgd", "adam"),
    "task.schedule": ("quarters", "cosine", "constant"),
}
