"""Time and memory of the acquisition functions beside the public implementations' algorithms, as ratios.

    python -m benchmarks.acquisition                  all comparisons, about ten minutes on two quiet cores
    python -m benchmarks.acquisition --quick          small sizes, under a minute
    python -m benchmarks.acquisition --only coreset badge
    python -m benchmarks.acquisition --growth --candidates 1281167      growth with N and b, to ImageNet's size

The public algorithms are written here plainly, as their papers and packages define them. Where one is slow, it
runs for a part of the picks and its time is scaled linearly: the output says so. Where `batchbald_redux` is
installed, it is timed too.
"""

import argparse
import importlib.util
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from mal.acquisition import PassAccumulator, badge, batchbald, estimate, joint_information, kcenter_greedy, softmax

Array = np.ndarray
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


@dataclass
class Options:
    """What the command line says of every comparison."""

    quick: bool
    full: bool
    repeats: int
    part: float


def timed(work: Callable[[], object], repeats: int) -> tuple[float, object]:
    """Median seconds, and what the last run gave."""
    seconds, given = [], None
    for _ in range(repeats):
        start = clock()
        given = work()
        seconds.append(clock() - start)
    return median(seconds), given


def peak_memory(work: Callable[[], object]) -> float:
    """MiB allocated at the peak beyond what was there, in a run of its own: tracing is not free."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def line(name: str, theirs: float, ours: float, target: float | None, note: str = "") -> None:
    aim = f"target {target:g}x" if target else ""
    print(f"{name:<46} {theirs:9.3f} s {ours:9.4f} s {theirs / ours:8.1f}x  {aim:<12} {note}", flush=True)


def memory_line(name: str, theirs: float, ours: float) -> None:
    print(f"{'  peak memory beyond the inputs':<46} {theirs:7.1f} MiB {ours:7.1f} MiB   ({name})", flush=True)


# ---------------------------------------------------------------- inputs


def digits_network(width: int, count: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Hidden features (count, width) of noisy digits in a small trained network, and its last layer."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    images = images / 16
    chosen = rng.choice(len(images), 200, replace=False)
    network = MLPClassifier((width,), tol=1e-3, random_state=seed).fit(images[chosen], labels[chosen])
    noisy = images[rng.integers(0, len(images), count)] + rng.normal(scale=0.15, size=(count, images.shape[1]))
    hidden = np.maximum(noisy @ network.coefs_[0] + network.intercepts_[0], 0)
    return hidden.astype(np.float32), network.coefs_[1], network.intercepts_[1]


def dropout_passes(count: int, passes: int) -> Array:
    """(count, passes, 10) probabilities of the network above with half of its hidden units dropped."""
    hidden, weights, biases = digits_network(128, count)
    rng = np.random.default_rng(1)
    masks = (rng.random((passes, hidden.shape[1])) < 0.5) * 2
    probabilities = np.empty((count, passes, len(biases)), dtype=np.float32)
    for s, mask in enumerate(masks):
        for start in range(0, count, 65_536):
            rows = slice(start, start + 65_536)
            probabilities[rows, s] = softmax((hidden[rows] * mask) @ weights + biases)
    return probabilities


# ---------------------------------------------------------------- the public algorithms


def pairwise_kcenter(features: Array, centres: Array, budget: int, part: float) -> tuple[float, list[int], int]:
    """A full pairwise distance from all candidates to each new centre; seconds (scaled), picks made, their number."""
    from sklearn.metrics import pairwise_distances

    start = clock()
    some = centres[: max(1, int(len(centres) * part))]
    nearest = pairwise_distances(features, some).min(axis=1)
    first = (clock() - start) * len(centres) / len(some)
    count, picks = max(3, int(budget * part)), []
    if part < 1:
        nearest = pairwise_distances(features, centres).min(axis=1)
    start = clock()
    for _ in range(count):
        picks.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, pairwise_distances(features, features[picks[-1:]])[:, 0])
    return first + (clock() - start) * budget / count, picks, count


def vector_kcenter(features: Array, centres: Array, budget: int) -> list[int]:
    """One matrix-vector product a pick and a running minimum, in float64: quick enough to check many picks."""
    points = features.astype(np.float64)
    norms = np.einsum("nd,nd->n", points, points)
    nearest = np.full(len(features), np.inf)
    for start in range(0, len(centres), 100):
        block = centres[start : start + 100].astype(np.float64)
        squared = np.einsum("nd,nd->n", block, block) - 2 * (points @ block.T)
        nearest = np.minimum(nearest, norms + squared.min(axis=1))
    picks: list[int] = []
    for _ in range(budget):
        picks.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, norms + norms[picks[-1]] - 2 * (points @ points[picks[-1]]))
        nearest[picks] = -1
    return picks


def factored_kmeans(
    probabilities: Array, features: Array, budget: int, rng: np.random.Generator, scipy_draws: bool = False
) -> list[int]:
    """k-means++ with factored distances to the newest centre, all candidates at each pick, in the inputs' precision.

    The published code draws through a scipy distribution made at each pick, which takes most of its time.
    """
    from scipy.stats import rv_discrete

    errors = probabilities.copy()
    errors[np.arange(len(errors)), errors.argmax(axis=1)] -= 1
    error_norms, feature_norms = (errors**2).sum(axis=1), (features**2).sum(axis=1)
    norms = error_norms * feature_norms
    picks = [int(np.argmax(norms))]
    nearest = np.full(len(norms), np.inf)
    while len(picks) < budget:
        c = picks[-1]
        squared = norms + norms[c] - 2 * (errors @ errors[c]) * (features @ features[c])
        nearest = np.minimum(nearest, np.sqrt(np.clip(squared, 0, None)).astype(np.float64))
        nearest[picks] = 0
        weights = nearest**2 / np.sum(nearest**2)
        if scipy_draws:
            drawn = rv_discrete(values=(np.arange(len(weights)), weights)).rvs(random_state=rng)
            picks.append(int(drawn))
            continue
        cumulative = np.cumsum(weights)
        picks.append(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")))
    return picks


def direct_bald(log_probabilities: Array) -> Array:
    """Both entropies from all passes at once, in float64."""
    logs = log_probabilities.astype(np.float64)
    highest = logs.max(axis=1, keepdims=True)
    mean = np.log(np.exp(logs - highest).sum(axis=1)) + highest[:, 0] - np.log(logs.shape[1])
    return -(mean * np.exp(mean)).sum(axis=1) + (logs * np.exp(logs)).sum(axis=(1, 2)) / logs.shape[1]


def published_batchbald(
    probabilities: Array, budget: int, configurations: int, seed: int
) -> tuple[list[int], list[float]]:
    """Joint entropies of the batch with every candidate at every pick, in float64, 1,024 candidates at a time.

    While K ** picks is at most `configurations` the joint distribution is whole; then configurations of the batch are
    drawn anew at each pick, as many from each parameter sample, and weigh by their chance under all. The picks, and
    the seconds of each.
    """
    import torch

    chances = torch.from_numpy(probabilities).double().clamp_min(1e-30)
    samples, classes = chances.shape[1:]
    given = -(chances * chances.log()).sum((1, 2)) / samples
    generator = torch.Generator().manual_seed(seed)
    joint, weights = torch.ones(1, samples, dtype=torch.double), torch.ones(1, dtype=torch.double)
    picks: list[int] = []
    seconds = []
    while len(picks) < budget:
        start = clock()
        if picks and classes ** len(picks) <= configurations:
            joint = (joint[:, None, :] * chances[picks[-1]].T).reshape(-1, samples)
            weights = torch.ones(len(joint), dtype=torch.double)
        elif picks:
            batch = chances[picks]
            each = configurations // samples
            labels = torch.multinomial(batch.reshape(-1, classes), each, True, generator=generator)
            places = labels.reshape(len(picks), 1, -1).expand(-1, samples, -1)
            joint = batch.log().gather(2, places).sum(0).exp().T
            weights = 1 / (joint.mean(1) * len(joint))
        entropies = []
        for block in chances.split(1024):
            after = torch.matmul(joint, block) / samples
            entropies.append(-(after.log() * after * weights[:, None]).sum((1, 2)))
        scores = torch.cat(entropies) - given - given[picks].sum()
        scores[picks] = -torch.inf
        picks.append(int(scores.argmax()))
        seconds.append(clock() - start)
    return picks, seconds


# ---------------------------------------------------------------- comparisons


def coreset(options: Options) -> None:
    count, width, labelled = (6000, 128, 200) if options.quick else (50_000, 512, 1000)
    rng = np.random.default_rng(0)
    random = rng.standard_normal((count + labelled, width), dtype=np.float32)
    kcenter_greedy(random[:300], None, 20)  # compiles, or loads what was compiled
    hidden = digits_network(width, count + labelled)[0]
    budgets = (200,) if options.quick else (1000, 2500)
    for name, points, targets in (("random", random, (60, 150)), ("digits' network", hidden, (40, None))):
        features, centres = points[:count], points[count:]
        for budget, target in zip(budgets, targets, strict=False):
            ours, picks = timed(lambda b=budget, f=features, c=centres: kcenter_greedy(f, c, b), options.repeats)
            theirs, first, made = pairwise_kcenter(features, centres, budget, options.part)
            same = list(picks[:made]) == first  # type: ignore[index]
            note = f"public: {made} picks timed and scaled; those picks identical: {same}"
            line(f"coreset, {name}, N={count} b={budget}", theirs, ours, None if options.quick else target, note)
        checked = vector_kcenter(features, centres, budgets[0] // 2)
        picks = kcenter_greedy(features, centres, budgets[0] // 2)
        print(f"  first {len(picks)} picks as by the plain algorithm in float64: {picks.tolist() == checked}")
    small = budgets[0] // 20
    memory_line(
        f"{small} picks",
        peak_memory(lambda: pairwise_kcenter(features, centres, small, 1.0)),
        peak_memory(lambda: kcenter_greedy(features, centres, small)),
    )


def badge_inputs(count: int, width: int, classes: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((count, width), dtype=np.float32), 0)
    weights = rng.standard_normal((width, classes), dtype=np.float32) / 6
    probabilities = np.empty((count, classes), dtype=np.float32)
    for start in range(0, count, 8192):
        probabilities[start : start + 8192] = softmax(features[start : start + 8192] @ weights)
    return probabilities, features


def compare_badge(options: Options) -> None:
    count, budget = (2000, 200) if options.quick else (10_000, 1000)
    probabilities, features = badge_inputs(count, 512, 100)
    for mode in ("exact", "rejection"):
        badge(probabilities[:50], features[:50], 10, np.random.default_rng(0), mode=mode)
    generator = np.random.default_rng
    published, _ = timed(lambda: factored_kmeans(probabilities, features, budget, generator(1), True), 1)
    theirs, _ = timed(lambda: factored_kmeans(probabilities, features, budget, generator(1)), 1)
    doubles = probabilities.astype(np.float64), features.astype(np.float64)
    checked = factored_kmeans(*doubles, budget, generator(1))
    for mode in ("exact", "rejection"):
        ours, picks = timed(
            lambda m=mode: badge(probabilities, features, budget, generator(1), mode=m), options.repeats
        )
        same = picks.tolist() == checked  # type: ignore[attr-defined]
        note = f"picks as k-means++ in float64: {same}" if mode == "exact" else "same distribution"
        target = None if options.quick else 8
        line(f"badge {mode}, N={count} d=512 K=100 b={budget}", published, ours, target, note)
        line("  the same, public draws without scipy", theirs, ours, None)
    small = budget // 20
    memory_line(
        f"{small} picks",
        peak_memory(lambda: factored_kmeans(probabilities, features, small, generator(1))),
        peak_memory(lambda: badge(probabilities, features, small, generator(1))),
    )


def streamed_bald(probabilities: Array) -> Array:
    passes = PassAccumulator()
    for s in range(probabilities.shape[1]):
        passes.update(probabilities[:, s])
    return np.asarray(passes.bald())


def bald(options: Options) -> None:
    probabilities = dropout_passes(2000 if options.quick else 10_000, 20)
    logs = np.log(np.maximum(probabilities, 1e-30))
    ours, scores = timed(lambda: streamed_bald(probabilities), max(5, options.repeats))
    theirs, expected = timed(lambda: direct_bald(logs), max(5, options.repeats))
    note = f"largest difference {np.abs(scores - expected).max():.1e}"  # type: ignore[operator]
    line(f"bald, N={len(probabilities)} 20 passes K=10, in one go", theirs, ours, None, note)
    memory_line("scores", peak_memory(lambda: direct_bald(logs)), peak_memory(lambda: streamed_bald(probabilities)))
    if importlib.util.find_spec("batchbald_redux"):
        import torch
        from batchbald_redux.batchbald import get_bald_batch

        tensor = torch.from_numpy(logs)
        package, _ = timed(lambda: get_bald_batch(tensor, 50, dtype=torch.double, device="cpu"), 2)
        line("bald, the package batchbald_redux itself", package, ours, 100)


def package_batchbald(probabilities: Array, budget: int, configurations: int) -> float:
    """Seconds of the public package, in float64, extrapolated from the difference of one sampled pick."""
    import torch
    from batchbald_redux.batchbald import get_batchbald_batch

    logs = torch.from_numpy(np.log(np.maximum(probabilities, 1e-30)))
    five, six = (
        timed(lambda b=b: get_batchbald_batch(logs, b, configurations, dtype=torch.double, device="cpu"), 1)[0]
        for b in (5, 6)
    )
    return five + (six - five) * (budget - 5)


def compare_batchbald(options: Options) -> None:
    count, budget, configurations = (1000, 10, 200) if options.quick else (10_000, 50, 1000)
    probabilities = dropout_passes(count, 20)
    generator = np.random.default_rng
    ours, picks = timed(
        lambda: batchbald(probabilities, budget, generator(0), configurations=configurations), options.repeats
    )
    made = budget if options.full or options.quick else 7
    theirs, seconds = published_batchbald(probabilities, made, configurations, 0)
    whole = sum(seconds) + median(seconds[4:]) * (budget - made)
    note = f"public: {made} picks timed" + (", the others as the median of those sampled" if made < budget else "")
    line(f"batchbald, N={count} 20 samples K=10 b={budget}", whole, ours, None if options.quick else 100, note)
    if importlib.util.find_spec("batchbald_redux") and not options.quick:
        package = package_batchbald(probabilities, budget, configurations)
        line("batchbald, the package itself", package, ours, 100, "5 and 6 picks timed, the others as the sixth")
    full = batchbald(probabilities, budget, generator(1), configurations=configurations, lazy=False)
    highest = np.argsort(-streamed_bald(probabilities))[:budget]
    told = {"public": theirs, "ours": picks[:made], f"ours, b={budget}": picks, "the same, not lazy": full}  # type: ignore[index]
    told |= {f"top {budget} of BALD": highest}
    rows = [f"{name} {joint_information(probabilities[p], generator(2)):.4f}" for name, p in told.items()]
    print(f"  joint information in nats: of the first {made} {rows[0]}, {'; '.join(rows[1:])}")
    print(f"  (at most {np.log(20):.4f} with 20 samples; {len(set(picks))} distinct picks)")  # type: ignore[call-overload]
    peak = peak_memory(lambda: batchbald(probabilities, budget, generator(0)))
    print(f"  peak memory beyond the inputs: {peak:.1f} MiB")


# ---------------------------------------------------------------- growth


def growth(candidates: int, budgets: list[int]) -> None:
    """How each grows. coreset, badge: d = 512, K = 100, 1,000 labelled; bald, batchbald: 20 passes, K = 10."""
    compiled = np.random.default_rng(0).standard_normal((300, 512), dtype=np.float32)
    kcenter_greedy(compiled, None, 20)
    badge(softmax(compiled[:, :10]).astype(np.float32), compiled, 20, np.random.default_rng(0))
    for count in sorted({min(candidates, n) for n in (50_000, 200_000, candidates)}):
        rng = np.random.default_rng(0)
        features = np.empty((count, 512), dtype=np.float32)
        for start in range(0, count, 8192):
            part = features[start : start + 8192]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        centres = rng.standard_normal((1000, 512), dtype=np.float32)
        seconds = []
        for budget in budgets:
            took, _ = timed(lambda b=budget, f=features, c=centres: kcenter_greedy(f, c, b), 1)
            seconds.append(took)
            print(f"coreset   N={count:>9,} b={budget:>6,} {took:9.2f} s", flush=True)
        whole = count // 20
        # The last two give the time of a pick; the plain algorithm reads all features at each.
        slope = max(seconds[-1] - seconds[-2], 1e-9) / (budgets[-1] - budgets[-2])
        print(
            f"  extrapolated linearly to b={whole:,}: {seconds[-1] + slope * (whole - budgets[-1]):.0f} s", flush=True
        )
        print(f"  {estimate('coreset', candidates=count, budget=whole, dimensions=512, labelled=1000)}")
        read, _ = timed(lambda f=features: f @ f[0], 3)
        print(f"  plain, one matrix-vector product a pick: {read * whole:.0f} s for b={whole:,}")
        del features
        probabilities, features = badge_inputs(count, 512, 100)
        for budget in budgets:
            took, _ = timed(lambda b=budget, p=probabilities, f=features: badge(p, f, b, np.random.default_rng(0)), 1)
            print(f"badge     N={count:>9,} b={budget:>6,} {took:9.2f} s", flush=True)
        del features, probabilities
        growth_of_passes(count)


def growth_of_passes(count: int) -> None:
    """Both read 20 passes of K = 10, 800 bytes per candidate; of 1,000 classes 80 kB, which bald sums as they come."""
    probabilities = dropout_passes(count, 20)
    batchbald(probabilities[:100], 10, np.random.default_rng(0))
    took, _ = timed(lambda: streamed_bald(probabilities), 1)
    print(f"bald      N={count:>9,}          {took:9.2f} s", flush=True)
    for budget in (10, 50):
        took, _ = timed(lambda b=budget: batchbald(probabilities, b, np.random.default_rng(0)), 1)
        print(f"batchbald N={count:>9,} b={budget:>6,} {took:9.2f} s", flush=True)
    print(f"  peak memory of bald beyond the inputs: {peak_memory(lambda: streamed_bald(probabilities)):.0f} MiB")


COMPARISONS = {"coreset": coreset, "badge": compare_badge, "bald": bald, "batchbald": compare_batchbald}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--full", action="store_true", help="every pick of the public BatchBALD: minutes more")
    parser.add_argument("--only", nargs="+", choices=sorted(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours; the median counts (default 3)")
    parser.add_argument("--part", type=float, default=0.03, help="part of the picks that a slow public algorithm runs")
    parser.add_argument("--growth", action="store_true", help="growth with N and b instead of the comparisons")
    parser.add_argument("--candidates", type=int, default=200_000, help="largest N of --growth (default 200,000)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[500, 1000, 2000], help="b of --growth")
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall",
        help="cpu, with OMP_NUM_THREADS=1: comparable on cores that other work uses too",
    )  # fmt: skip
    given = parser.parse_args()
    global clock
    clock = CLOCKS[given.clock]
    if given.growth:
        if len(given.budgets) < 2:
            parser.error("--budgets needs two or more")
        growth(given.candidates, sorted(given.budgets))
        return
    print(f"{'work':<46} {'public':>11} {'ours':>11} {'ratio':>9}")
    for name in given.only:
        COMPARISONS[name](Options(given.quick, given.full, given.repeats, given.part))


if __name__ == "__main__":
    main()
