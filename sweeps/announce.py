"""What a launch says before it begins: what will be done, how, where, and about how much of everything it takes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mal.config.checks import pool_size
from mal.config.compose import Sweep
from mal.config.schema import Chain
from mal.config.sizes import steps_of_round
from mal.run import folder as run_folder
from sweeps.bill import Rates, by_labelled, hours, images_of, rates_of, unshared
from sweeps.loading import Loading, size
from sweeps.plan import ChainPlan, State
from sweeps.table import duration

SEVERAL = 4  # GPUs of a chain, in the example
WORTH_SHARING = 4.0  # hours of a chain from which on several GPUs are offered
NEXT = "\n           "  # a plan's next line
PARAMETERS = {"resnet18": 12e6, "vgg16_bn": 40e6, "drn_d_22": 16e6}  # of F, C and D
FEATURES = {"resnet18": 512, "vgg16_bn": 25_088, "drn_d_22": 512}  # numbers of an image
BY_FEATURES = ("badge", "coreset", "probcover", "typiclust")  # acquisitions whose scans keep them
GRAPHED = 64  # pixels a side: of larger images kernels take longer than their launches
ROUND_FILES = 100_000  # bytes of a round's records beside its indices


def announce(sweep: Sweep, plans: Sequence[ChainPlan], loading: Loading, where: str, gpus: int) -> None:
    """Print it in ten lines, where there is something to do. where: on what chains run; gpus: how many each has."""
    to_run = [plan for plan in plans if plan.to_run]
    if not to_run:
        return
    config = to_run[0].config
    rounds = sum(plan.target - plan.committed for plan in to_run)
    pool = pool_size(config.dataset)
    methods = ", ".join(dict.fromkeys(plan.folder.parent.name for plan in to_run))
    many = f"{len(to_run)} chains ({methods}), {rounds} rounds to do, {config.rounds} in a chain"
    labels = f"{config.initial:,} at first, {config.budget:,} more after each round, of a pool of {pool:,} images"
    rates = rates_of(sweep.runs, config)
    lines = {
        "chains": many,
        "labels": labels,
        "loader": f"{loading.loader}: {loading.reason}",
        "runs on": where,
        "steps": _steps(config, pool),
        "takes": _takes(to_run, pool, gpus, rates),
        "less by": _knobs(to_run, pool, gpus, rates),
        **_graphs(to_run, gpus),
        "disk": _disk(sweep, to_run, loading),
        "data": f"{config.dataset.root or config.data}",
        "results": f"{sweep.runs / sweep.name}",
    }
    print("\n".join(f"  {key:<8} {text}" for key, text in lines.items()), flush=True)


def _steps(config: Chain, pool: int) -> str:
    first, last = steps_of_round(config, 0, pool), steps_of_round(config, config.rounds - 1, pool)
    told = []
    for phase, (count, images) in last.items():
        least = first[phase][0]
        span = f"{count:,}" if count == least else f"{least:,} to {count:,}"
        told.append(f"{span} of {phase} ({images} images each)")
    return f"a round of {config.method['name']} has {' + '.join(told)}"


def _takes(plans: Sequence[ChainPlan], pool: int, gpus: int, rates: Rates) -> str:
    measured = _measured(plans)
    if measured is not None:
        seconds, count = measured
        unit = _spent(seconds * gpus / 3600) if gpus else duration(seconds)
        return f"about {unit} of rounds, by the {count} committed so far"
    images = images_of(plans, pool)
    work = f"{sum(images.values()):.3g} images through {plans[0].config.backbone['name']}"
    found = hours(images, rates)
    if found is None:
        return f"{work}; how long that takes is known after the first round"
    here = "" if gpus else "; on CPUs known after the first round"
    per, unit = _unit(total := sum(found.values()))
    phases = " + ".join(f"{per * count:,.1f} {phase}" for phase, count in found.items())
    alone = sum((hours(images_of(unshared(plans), pool), rates) or {}).values())
    shared = alone - total
    less = (
        f"{NEXT}{per * shared:,.1f} ({shared / alone:.0%}) fewer as chains that are alike train once (share=true)"
        if shared
        else ""
    )
    return f"about {per * total:,.1f} {unit}: {phases}{NEXT}{work} at {rates}{here}{less}"


def _unit(hours: float) -> tuple[int, str]:
    """In which unit GPU-hours are told, and how many of it an hour has."""
    return (1, "GPU-hours") if hours >= 1 else (60, "GPU-minutes")


def _spent(hours: float) -> str:
    per, unit = _unit(hours)
    return f"{per * hours:,.1f} {unit}"


def _measured(plans: Sequence[ChainPlan]) -> tuple[float, int] | None:
    """Seconds of the rounds to do, by the mean of those committed, and how many these are."""
    seconds = [
        float(run_folder.read_json(run_folder.round_folder(plan.folder, number) / run_folder.METRICS)["seconds"])
        for plan in plans
        for number in range(plan.committed)
    ]
    rounds = sum(plan.target - plan.committed for plan in plans)
    return (sum(seconds) / len(seconds) * rounds, len(seconds)) if seconds else None


def _knobs(plans: Sequence[ChainPlan], pool: int, gpus: int, rates: Rates) -> str:
    """The keys that make a sweep smaller, and what those two change that leave its rounds, labels and methods alone."""
    config = plans[0].config
    sections = [section for section in ("minimax", "task") if section == "task" or _plays(config)]
    epochs = [f"{section}.epochs ({getattr(config, section).epochs:g})" for section in sections]
    lines = [f"lower {', '.join(epochs)}, rounds ({config.rounds}), seeds, methods, dataset.pool"]
    of_pool = [f"{section}.epoch_of=labelled" for section in sections if getattr(config, section).epoch_of == "pool"]
    now, then = (hours(images_of(each, pool), rates) for each in (plans, by_labelled(plans)))
    if of_pool:
        less = f", which makes {_spent(sum(then.values()))}" if then else ""
        lines.append(f"or {', '.join(of_pool)}{less}")
    if gpus <= 1 and now and (each := sum(now.values()) / len(plans)) >= WORTH_SHARING:
        several = f"{each / SEVERAL:,.1f} h at best, not {each:,.1f} (mean)"
        lines.append(f"or, on Slurm, cluster.gpus_per_node={SEVERAL}, which share each batch: a chain in {several}")
    return NEXT.join(lines)


def _graphs(plans: Sequence[ChainPlan], gpus: int) -> dict[str, str]:
    """The line that offers CUDA graphs to new chains, where the launches of kernels take most of a step's time."""
    config = plans[0].config
    side = config.dataset.crop or config.dataset.size
    if any(plan.state is not State.NEW for plan in plans):  # theirs are refused other arithmetic
        return {}
    if gpus != 1 or side > GRAPHED or config.cuda_graphs or config.minimax.average or config.device == "cpu":
        return {}
    return {"faster": "cuda_graphs=true: steps in a half to a fifth of the time at 32 pixels (docs/performance.md)"}


def _plays(config: Chain) -> bool:
    return "Algorithm 1" in steps_of_round(config, 0, pool_size(config.dataset))


def _disk(sweep: Sweep, plans: Sequence[ChainPlan], loading: Loading) -> str:
    """What will be written, and what is free."""
    results = sum(
        ROUND_FILES + 8 * (plan.config.initial + (number + 1) * plan.config.budget)
        for plan in plans
        for number in range(plan.committed, plan.target)
    )
    parameters = PARAMETERS.get(str(plans[0].config.backbone["name"]), 1e6)
    if plans[0].config.keep_model:
        results += int(4 * parameters * sum(plan.target - plan.committed for plan in plans))
    checkpoint = 12 * parameters  # weights and Adam's two moments in float32
    told = f"{size(results)} of results, up to {size(checkpoint)} of checkpoints per running chain"
    scan, method = max((_scanned(plan.config), plan.config.method["name"]) for plan in plans)
    told += f" ({size(scan)} while {method} scores)" if scan > checkpoint else ""
    told += f"; {size(_free(sweep.runs))} are free"
    if loading.copy:
        told += f"; the copy takes up to {size(loading.copy_bytes)} of {size(_free(loading.copy))} in {loading.copy}"
    return told


def _scanned(config: Chain) -> int:
    """Bytes of the blocks that a scan of the pool leaves for a resumption, where each image has its features there."""
    features = FEATURES.get(str(config.backbone["name"]), 0)
    return 4 * features * pool_size(config.dataset) if config.method["acquisition"] in BY_FEATURES else 0


def _free(path: Path) -> int:
    return shutil.disk_usage(next(each for each in (path, *path.absolute().parents) if each.is_dir())).free
