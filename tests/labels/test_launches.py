"""Launches of sweeps that people label: what is refused, what is said and submitted while they are waited for."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mal.config.compose import compose_sweep
from mal.labels.importing import import_files
from mal.run import folder as run_folder
from slurm.local import LocalSlurm
from slurm.squeue import read_queue
from sweeps import launch, status
from tests.chains import ROOT, environment
from tests.labels.pools import filled, overrides, truth, write_pool
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["oracle=people"], "oracle=people is unknown. Allowed: truth, files."),
        (["seeds=3"], "seeds=3: with oracle=files each seed would ask people for labels of its own."),
        (["labels.enough=1.2"], "labels.enough=1.2 is out of range"),
        (["loader=ffcv"], "loader=ffcv reads a prepared copy, which holds labels"),
        (["keep_queries=3"], "keep_queries=3 keeps true labels with queries"),
        (["dataset.imbalance=[0.5,1,1]"], "needs the labels of the pool"),
        (["dataset.class_names=[ant,bee]"], "has folders that are no class: wasp. Set dataset.class_names="),
        (["dataset.class_names=[ant,bee,cannot tell]"], "'cannot tell' cannot be a class's name"),
        (["dataset.train_list=LIST"], "has labels that are no class: hornet. The classes are ant, bee, wasp."),
        (["oracle=truth", "watch=true"], "watch=true waits for labels from people"),
        (["dataset=digits"], "oracle=files: digits brings its labels."),
    ],
)
def test_what_cannot_be_is_refused_at_launch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    pool = write_pool(tmp_path / "pool")
    known = tmp_path / "known.csv"
    known.write_text("ant/1.png,hornet\n")
    given = ["dataset=digits"] if words == ["dataset=digits"] else overrides(pool, *words)
    place = ["methods=[random]", "cluster=local", f"runs={tmp_path / 'runs'}"]
    oracle = [] if any(word.startswith("oracle=") for word in words) else ["oracle=files"]
    assert launch.main([word.replace("LIST", str(known)) for word in [*given, *place, *oracle]]) == 2
    assert told in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/*/*/config.yaml"))


def test_older_chains_keep_their_fingerprints_and_enough_is_free_to_change(tmp_path: Path) -> None:
    (chain,) = compose_sweep(["dataset=digits", "methods=[random]", "seeds=1"]).chains
    assert "labels" not in chain.science()
    assert "oracle" not in chain.science()["dataset"]
    words = [*overrides(write_pool(tmp_path / "pool")), "methods=[random]", "oracle=files"]
    first, second = (compose_sweep([*words, f"labels.enough={enough}"]).chains[0] for enough in (1, 0.5))
    assert first.fingerprint() == second.fingerprint()
    assert first.science()["dataset"]["oracle"] == "files"


def test_a_watching_launch_goes_on_by_itself(tmp_path: Path) -> None:
    words = [*overrides(write_pool(tmp_path / "pool"), "rounds=2"), "methods=[random,entropy]", "cluster=local"]
    words += ["oracle=files", "watch=true", f"runs={tmp_path}", "name=watched"]
    command = [sys.executable, str(ROOT / "sweeps" / "launch.py"), *words]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        chains = [tmp_path / "watched" / method / "seed-0" for method in ("entropy", "random")]
        while process.poll() is None:
            for chain in chains:
                committed = run_folder.committed_rounds(chain)
                asking = chain / "initial" if committed == 0 else chain / "round-0"
                if committed < 2 and run_folder.is_committed(asking):
                    import_files(tmp_path / "watched", [filled(chain, tmp_path / "filled.csv")])
            time.sleep(0.2)
        assert process.stdout is not None
        told = process.stdout.read()
    assert process.returncode == 0, told
    assert all(run_folder.committed_rounds(chain) == 2 for chain in chains)


@pytest.mark.slurm
@pytest.mark.slow
def test_on_slurm_a_chain_has_one_job_and_none_while_it_waits(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, chain = tmp_path / "runs", tmp_path / "runs" / "asked" / "random" / "seed-0"
    words = [
        *overrides(write_pool(tmp_path / "pool")),
        "methods=[random]",
        "oracle=files",
        f"runs={runs}",
        "name=asked",
    ]
    words += ["cluster=slurm", "cluster.time.default=10", "cluster.gpus_per_node=0"]
    for asked in (6, 5, 5):
        assert launch.main(words) == 0
        assert "1 jobs submitted" in capsys.readouterr().out
        wait_until(lambda: not read_queue(), "the job", timeout_s=120)
        assert launch.main(words) == 0  # nobody has labelled: nothing to submit
        told = capsys.readouterr().out
        assert "0 jobs submitted" in told
        assert f"waits for {asked} labels (0 given)" in told
        assert not read_queue()
        assert status.main([f"runs={runs}"]) == 0
        shown = capsys.readouterr().out
        assert "1 labels" in shown
        assert f"waits for {asked} labels (0 given)" in shown
        import_files(runs / "asked", [filled(chain, tmp_path / "filled.csv", truth)])
    assert launch.main(words) == 0
    wait_until(lambda: not read_queue(), "the job", timeout_s=120)
    assert run_folder.committed_rounds(chain) == 3
