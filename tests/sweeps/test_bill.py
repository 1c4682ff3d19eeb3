"""What a plan says that a sweep costs: by the table, by earlier rounds, and as the README prints it."""

import json
import re
from pathlib import Path

import pytest

from mal.config.compose import compose_sweep
from mal.run.windows import FILE
from sweeps.bill import hours, images_of, rates_of
from sweeps.launch import main
from sweeps.plan import freeze, reconcile
from tests.chains import ROOT
from tests.made_up_runs import write_chain

FIGURE = ("dataset=cifar100", "methods=[mal,random]", "seeds=2", "dry_run=true")


def earlier(runs: Path, name: str, gpus: int, rates: dict[str, float], backbone: str = "resnet18") -> None:
    """A chain of two rounds that trained at these images per second."""
    chain = write_chain(runs, "mal", 0, [50, 60], name=name, dataset="cifar100", backbone=backbone, gpus=gpus)
    lines = [
        json.dumps({"round": number, "phase": phase, "images_per_s": rate * (number + step)})
        for number in (0, 1)
        for phase, rate in rates.items()
        for step in (0.0, 1.0)
    ]
    (chain / FILE).write_text("\n".join(lines) + "\n")


def test_the_rate_is_that_of_earlier_rounds_on_gpus_with_the_same_backbone(tmp_path: Path) -> None:
    (config, *_) = compose_sweep(FIGURE).chains
    earlier(tmp_path, "cpu", 0, {"minimax": 7.0})
    earlier(tmp_path, "other", 1, {"minimax": 7.0}, backbone="vgg16_bn")
    assert rates_of(tmp_path, config).chains == 0
    earlier(tmp_path, "one", 4, {"minimax": 4000.0, "task": 6000.0})  # the last round's last: twice that, on 4 GPUs
    rates = rates_of(tmp_path, config)
    assert (rates.chains, dict(rates.measured)) == (1, {"minimax": 2000.0, "task": 3000.0})
    assert (rates.of("Algorithm 1"), rates.of("vaal")) == (2000.0, 30_000.0)


def test_hours_are_images_by_the_rate_of_their_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier(tmp_path, "one", 1, {"minimax": 1000.0, "task": 500.0})
    sweep = compose_sweep([*FIGURE, f"runs={tmp_path}"])
    plans = reconcile(sweep)
    images = images_of(plans, 50_000)
    steps = 5 * 39_063  # rounds of 100 epochs of 50,000 images in batches of 128
    assert images["Algorithm 1"] == 2 * steps * 256
    assert images["M"] == 4 * steps * 128
    found = hours(images, rates_of(tmp_path, plans[0].config))
    assert found is not None
    assert found["Algorithm 1"] == pytest.approx(2 * steps * 256 / 2000 / 3600)
    assert found["M"] == pytest.approx(4 * steps * 128 / 1000 / 3600)
    assert main(["cluster=local", *FIGURE, f"runs={tmp_path}", f"data={tmp_path}"]) == 0
    assert "images/s per GPU as in 1 earlier chains: 2,000 in minimax, 1,000 in task" in capsys.readouterr().out


def test_less_than_an_hour_is_told_in_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier(tmp_path, "one", 1, {"minimax": 1000.0, "task": 500.0})
    words = [*FIGURE, f"runs={tmp_path}", f"data={tmp_path}", "cluster=local", "dataset.pool=2500", "initial=100"]
    words += ["minimax.epochs=10", "task.epochs=10", "budget=100", "rounds=2"]
    assert main(words) == 0
    (takes,) = re.findall(r"  takes    about ([\d.]+) GPU-minutes: (.*)", capsys.readouterr().out)
    parts = [float(part) for part in re.findall(r"[\d.]+(?= [A-Za-z])", takes[1])]
    assert float(takes[0]) == pytest.approx(sum(parts), abs=0.2)
    assert min(parts) > 0


@pytest.mark.parametrize("words", ["dataset=imagenet seeds=3", "experiment=figure5"])
def test_the_readme_prints_the_plan_that_a_launch_prints(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = (f"runs={tmp_path}", f"data={tmp_path}", "cluster=slurm", "cluster.gpus_per_node=1", "dry_run=true")
    assert main([*words.split(), *place]) == 0
    said = capsys.readouterr().out
    (block,) = re.findall(rf"`{words}`[^\n]*\n\n((?:      .*\n)+)", (ROOT / "README.md").read_text())
    lines = [line.removeprefix("    ") for line in block.splitlines()]
    assert [line for line in lines if line not in said.splitlines()] == []
    assert any(line.startswith("  takes ") for line in lines)
    assert ("(2.62 GB while coreset scores)" in said) == ("imagenet" in words)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dataset=cifar100", True),
        ("dataset=cifar100 cuda_graphs=true", False),
        ("dataset=cifar100 cluster.gpus_per_node=2", False),
        ("dataset=cifar100 minimax.average=0.9", False),
        ("dataset=imagenet", False),
    ],
)
def test_a_plan_offers_cuda_graphs_for_small_images_on_one_gpu(
    words: str, offered: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = (f"runs={tmp_path}", f"data={tmp_path}", "cluster=slurm", "dry_run=true", "seeds=1")
    gpus = () if "gpus_per_node" in words else ("cluster.gpus_per_node=1",)
    assert main([*words.split(), *place, *gpus]) == 0
    assert ("  faster   cuda_graphs=true" in capsys.readouterr().out) == offered


def test_chains_that_were_launched_without_cuda_graphs_are_not_offered_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset=cifar100", f"runs={tmp_path}", f"data={tmp_path}", "cluster=slurm", "cluster.gpus_per_node=1"]
    freeze(reconcile(compose_sweep(words)))
    capsys.readouterr()
    assert main([*words, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    assert "  less by " in said
    assert "cuda_graphs" not in said
