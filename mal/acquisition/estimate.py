"""What an acquisition needs, known before anything is computed: memory in bytes, arithmetic, and roughly the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mal.acquisition.kcenter import memory_of_look, wide_enough

CPU_FLOPS = 5e10
"""float32 operations per second that a matrix product reaches on one core, at least."""


@dataclass(frozen=True)
class Estimate:
    """The needs of one acquisition beyond its inputs' own memory, which `inputs` holds.

    memory: bytes at the peak beyond the inputs; inputs: bytes of the arrays given; flops: floating-point
    operations in float32 equivalents; alternative: what to use where it does not fit.
    """

    name: str
    memory: int
    flops: float
    alternative: str
    inputs: int = 0

    def seconds(self, flops_per_second: float = CPU_FLOPS) -> float:
        """Time at a rate, for the log: right to a factor of a few."""
        return self.flops / flops_per_second

    def require(self, limit: int, *, inputs_loaded: bool = True) -> None:
        """Raise ValueError where it needs more than `limit` bytes, naming the alternative.

        The inputs count too unless they are loaded already, as they are for what is free now.
        """
        needed = self.memory + (0 if inputs_loaded else self.inputs)
        if needed > limit:
            raise ValueError(
                f"{self.name} needs {needed / 2**30:.3g} GiB and {limit / 2**30:.3g} GiB are there: "
                f"give it more memory, or use {self.alternative}"
            )

    def __str__(self) -> str:
        minutes = self.seconds() / 60
        return (
            f"{self.name}: {self.memory / 2**30:.3g} GiB beyond {self.inputs / 2**30:.3g} GiB of inputs, "
            f"{self.flops / 1e12:.3g} TFLOP, about {minutes:.2g} min per core"
        )


def estimate(
    name: str,
    *,
    candidates: int,
    budget: int,
    dimensions: int = 0,
    classes: int = 0,
    labelled: int = 0,
    passes: int = 1,
    configurations: int = 1000,
) -> Estimate:
    """The needs of an acquisition by name, from sizes alone. Raises ValueError for an unknown name.

    dimensions: of the features; passes: stochastic passes or members; configurations: BatchBALD's.
    """
    if name not in _NEEDS:
        raise ValueError(f"acquisition={name!r}: must be one of {', '.join(sorted(_NEEDS))}")
    sizes = _Sizes(candidates, budget, dimensions, classes, labelled, passes, configurations)
    return _NEEDS[name](sizes)


@dataclass(frozen=True)
class _Sizes:
    n: int
    b: int
    d: int
    k: int
    m: int
    s: int
    c: int


def _scores(name: str, passes: bool) -> Callable[[_Sizes], Estimate]:
    """One score per candidate, streamed over batches of predictions."""

    def needs(z: _Sizes) -> Estimate:
        runs = z.s if passes else 1
        return Estimate(name, 40 * z.n + 24 * 1024 * max(z.k, 1), 20.0 * z.n * z.k * runs, "a subset of the candidates")

    return needs


def _coreset(z: _Sizes) -> Estimate:
    # The lazy search does a fifth to a quarter of the plain products on random features, less where classes
    # are distinct, or where a first look at the principal directions excludes most pairs.
    plain = 2.0 * z.n * (z.m + z.b) * z.d
    pool = 4 * z.d * max(4096, z.n // 16)
    inputs = 4 * z.d * (z.n + z.m)
    other = "coreset on a random subset of the candidates"
    look = memory_of_look(z.n + z.m, z.d) if wide_enough(z.d) else 0
    return Estimate("coreset", 80 * z.n + pool + look + 2**26, plain / 4, other, inputs)


def _badge(z: _Sizes) -> Estimate:
    inputs = 4 * z.n * (z.d + z.k)
    # Two proposals a pick against half the picks, in float64, and one pass over all candidates.
    flops = 2.0 * (z.d + z.k) * (2 * z.n + 2.0 * z.b * z.b)
    blocks = 8 * 4096 * (z.d + z.k) + 8 * 1024 * 4096
    return Estimate("badge", 64 * z.n + blocks, flops, "badge on a random subset of the candidates, or margin", inputs)


def _badge_exact(z: _Sizes) -> Estimate:
    rejection = _badge(z)
    # Bound by memory: each pick reads the probabilities and part of the features once; 8 operations a number
    # read.
    flops = 8.0 * z.n * z.b * (z.k + z.d / 4)
    return Estimate("badge_exact", rejection.memory, flops, "badge in its rejection mode", rejection.inputs)


def _batchbald(z: _Sizes) -> Estimate:
    inputs = 4 * z.n * z.s * z.k
    # A third of the candidates evaluated a pick; a logarithm counts as 20 operations.
    flops = z.n * z.b / 3.0 * z.c * z.k * (2 * z.s + 20)
    memory = 48 * z.n + 24 * z.c * z.s * max(z.k, 1) + 16 * max(2**16, z.c * z.k) + 2**25
    # The passes over all candidates are its input, and what usually does not fit.
    return Estimate("batchbald", memory, flops, "power_bald, or batchbald on the candidates of highest bald", inputs)


def _typiclust(z: _Sizes) -> Estimate:
    clusters = min(500, z.m + z.b)
    inputs = 4 * z.d * (z.n + z.m)
    flops = 2.0 * z.d * ((z.n + z.m) * clusters * 5 + float(z.n) ** 2 / max(clusters, 1))
    return Estimate("typiclust", inputs + 680 * z.n + 2**27, flops, "typiclust on a random subset, or coreset", inputs)


def _probcover(z: _Sizes) -> Estimate:
    # Edges depend on delta: 100 per candidate are assumed here, and a sample is measured before the graph is
    # built.
    inputs = 4 * z.d * (z.n + z.m)
    flops = 2.0 * z.n * (z.n + z.m) * z.d
    return Estimate("probcover", 424 * z.n + 2**28, flops, "probcover on a random subset, or coreset", inputs)


_NEEDS: dict[str, Callable[[_Sizes], Estimate]] = {
    **{name: _scores(name, False) for name in ("entropy", "margin", "least_confidence")},
    **{name: _scores(name, True) for name in ("bald", "power_bald", "ensemble")},
    "coreset": _coreset,
    "badge": _badge,
    "badge_exact": _badge_exact,
    "batchbald": _batchbald,
    "typiclust": _typiclust,
    "probcover": _probcover,
}
