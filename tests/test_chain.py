"""Chains of rounds: what they leave, interrupted and resumed, failed, locked, tampered with; the exit statuses."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mal.chain import (
    EXIT_OUT_OF_MEMORY,
    ChainLocked,
    RoundFailed,
    clear_failure,
    is_locked,
    locked,
    out_of_memory,
    read_failure,
    run_chain,
)
from mal.config.schema import Chain
from mal.files import write_json
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.run.folder import DamagedRun
from mal.run.heartbeat import read_progress
from tests.chains import (
    StopsAt,
    chain_config,
    environment,
    has_trained,
    outcome,
    python,
    run_chain_process,
    write_chain,
)
from tests.made_up_data import write_folders

FILES = {"labeled.npy", "metrics.json", "provenance.json", "history.json", "COMMITTED"}


def finished(runs: Path, config: Chain) -> Path:
    """The folder of a chain that ran undisturbed in this process."""
    folder = write_chain(runs, config)
    run_chain(folder, None, Interrupt())
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished chain of each method."""
    runs = tmp_path_factory.mktemp("undisturbed")
    return {name: finished(runs, chain_config(method=name)) for name in ("mal", "random", "entropy", "mal_init_random")}


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def folder_chain(root: Path, *overrides: str) -> Chain:
    """Of 24 small image files below `root`."""
    write_folders(root, train=8)
    folders = [f"dataset.{part}_images={root / part}" for part in ("train", "test")]
    files = ("dataset=folder", "backbone=small_cnn", "dataset.size=16", "dataset.crop=null", *folders)
    return chain_config(*files, f"data={root}", "rounds=1", *overrides)


# ------------------------------------------------------------------------- what a chain leaves behind


def test_a_chain_leaves_what_the_contract_says(undisturbed: dict[str, Path]) -> None:
    folder = undisturbed["mal"]
    left = {"config.yaml", "windows.jsonl", "round-0", "round-1"}
    assert {path.name for path in folder.iterdir()} - {".lock"} == left
    assert {path.name for path in (folder / "round-0").iterdir()} == FILES | {"query.npy"}
    assert {path.name for path in (folder / "round-1").iterdir()} == FILES  # the last round asks for nothing
    first, second = (run_folder.read_round(run_folder.round_folder(folder, number)) for number in (0, 1))
    assert first.query is not None
    assert (len(first.labeled), len(first.query), len(second.labeled)) == (20, 20, 40)
    assert np.array_equal(second.labeled, np.union1d(first.labeled, first.query))
    assert second.provenance["parent"] == first.digest
    assert first.provenance["parent"] is None


def test_metrics_and_provenance_have_the_documented_keys(undisturbed: dict[str, Path]) -> None:
    for number in (0, 1):
        metrics = read(undisturbed["mal"] / f"round-{number}", "metrics.json")
        expected = {"dataset": "digits", "method": "mal", "seed": 0, "round": number, "labeled": 20 * (number + 1)}
        expected |= {"pool": 1347, "metric": "accuracy", "preemptions": 0, "backbone": "small_cnn", "classes": 10}
        assert {key: metrics[key] for key in expected} == expected
        assert metrics["percent"] == pytest.approx(100 * 20 * (number + 1) / 1347)
        assert metrics["seconds"] > 0
        assert len(metrics["per_class"]) == 10
        assert metrics["value"] == pytest.approx(np.mean(metrics["per_class"]), abs=2)  # the test set is stratified
        assert 0 <= metrics["value"] <= 100
        assert ("query_classes" in metrics) == (number == 0)
        provenance = read(undisturbed["mal"] / f"round-{number}", "provenance.json")
        keys = {"fingerprint", "code", "git_commit", "git_dirty", "versions", "host", "device", "parent", "pool"}
        assert keys | {"started", "finished"} <= provenance.keys()
        assert provenance["fingerprint"] == chain_config().fingerprint()
        assert provenance["versions"]["torch"] == torch.__version__
    assert sum(read(undisturbed["mal"] / "round-0", "metrics.json")["query_classes"]) == 20


def test_query_classes_are_those_of_the_query(undisturbed: dict[str, Path]) -> None:
    from mal.data.dataset import load

    dataset = load(chain_config().dataset, Path("nowhere"), 0)
    found = run_folder.read_round(undisturbed["entropy"] / "round-0")
    assert found.query is not None
    expected = np.bincount(dataset.oracle.label(found.query), minlength=10)
    assert found.metrics["query_classes"] == expected.tolist()


def test_methods_start_alike_and_differ_only_in_what_they_differ_in(undisturbed: dict[str, Path]) -> None:
    found = {name: outcome(folder) for name, folder in undisturbed.items()}
    assert len({rounds["round-0"]["labeled"] for rounds in found.values()}) == 1
    # the same F under M: MAL's start; the same draw: random's choice
    assert found["mal"]["round-0"]["value"] == found["mal_init_random"]["round-0"]["value"]
    assert found["random"]["round-0"]["value"] == found["entropy"]["round-0"]["value"]
    assert found["mal_init_random"]["round-0"]["query"] == found["random"]["round-0"]["query"]
    assert found["mal_init_random"]["round-1"]["labeled"] == found["random"]["round-1"]["labeled"]
    assert len({found[name]["round-0"]["query"] for name in ("mal", "random", "entropy")}) == 3


def test_the_same_chain_elsewhere_is_the_same(tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    torch.manual_seed(99)
    assert outcome(finished(tmp_path, chain_config())) == outcome(undisturbed["mal"])
    other = outcome(finished(tmp_path, chain_config(seed=1)))
    assert other["round-0"]["labeled"] != outcome(undisturbed["mal"])["round-0"]["labeled"]


def test_kept_models_are_those_that_were_evaluated(tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    from mal.data.augment import build_augmentation
    from mal.data.dataset import load
    from mal.data.pixel_statistics import pixel_statistics
    from mal.models.backbones import build_backbone
    from mal.models.heads import TaskModel
    from tests.chains import CPU

    config = chain_config("keep_model=true", method="random")
    folder = finished(tmp_path, config)
    assert outcome(folder) == outcome(undisturbed["random"])
    dataset = load(config.dataset, Path("nowhere"), 0)
    model = TaskModel(build_backbone(config.backbone, 1), 10)
    model.load_state_dict(safetensors.torch.load_file(folder / "round-1" / "model.safetensors"))
    augmentation = build_augmentation(config.dataset, *pixel_statistics(dataset), CPU.torch)
    with torch.no_grad():
        predicted = model.eval()(augmentation.evaluate(torch.from_numpy(dataset.test.images))).argmax(1).numpy()
    value = read(folder / "round-1", "metrics.json")["value"]
    assert 100 * (predicted == dataset.test.labels).mean() == pytest.approx(value)


def test_m_can_go_on_from_round_to_round(tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    folder = finished(tmp_path, chain_config("task.init=continue", method="random"))
    scratch, continued = outcome(undisturbed["random"]), outcome(folder)
    assert continued["round-0"]["value"] == scratch["round-0"]["value"]
    assert continued["round-1"]["value"] != scratch["round-1"]["value"]
    assert (folder / "round-0" / "model.safetensors").is_file()


# ------------------------------------------------------------------------- interrupted and resumed


def test_interrupted_wherever_it_looks_a_chain_ends_as_undisturbed(
    tmp_path: Path, undisturbed: dict[str, Path]
) -> None:
    folder = write_chain(tmp_path, chain_config())
    phases, attempts = set(), 0
    while run_folder.committed_rounds(folder) < 2:
        attempts += 1
        try:
            run_chain(folder, None, StopsAt(4 + attempts % 12))
        except Interrupted:
            number = run_folder.committed_rounds(folder)
            beat = read_progress(run_folder.round_folder(folder, number))
            assert beat is None or beat["interrupted"] == "a test"
            phases.add(beat["phase"] if beat else "between rounds")
            assert not (run_folder.round_folder(folder, number) / run_folder.FAILED).exists()
        assert attempts < 60
    assert {"minimax", "task"} <= phases
    assert phases & {"evaluate", "score", "commit"}
    assert outcome(folder) == outcome(undisturbed["mal"])
    preempted = [read(folder / f"round-{n}", "metrics.json")["preemptions"] for n in (0, 1)]
    assert sum(preempted) >= attempts - 3


def test_sigterm_saves_and_leaves_with_75_and_the_same_command_goes_on(tmp_path: Path) -> None:
    config = chain_config("minimax.epochs=6")
    folder = write_chain(tmp_path, replace(config, rounds=1))
    command = [sys.executable, "-m", "mal.chain", str(folder)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not has_trained(folder, "minimax"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert is_locked(folder)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "interrupted (SIGTERM)" in said
    beat = read_progress(folder / "round-0")
    assert beat is not None
    assert (beat["interrupted"], beat["phase"]) == ("SIGTERM", "minimax")
    state = torch.load(_payload(folder / "round-0" / "checkpoint" / "minimax.ckpt"), weights_only=True)
    assert state["step"] == beat["step"] > 0
    assert not is_locked(folder)
    run_chain(folder, None, Interrupt())
    undisturbed = finished(tmp_path / "undisturbed", replace(config, rounds=1))
    assert outcome(folder) == outcome(undisturbed)
    assert read(folder / "round-0", "metrics.json")["preemptions"] == 1


def _payload(path: Path) -> Any:
    import io

    return io.BytesIO(path.read_bytes().split(b"\n", 2)[2])


def test_a_kill_between_the_commit_and_the_cleaning_up_is_healed(tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    folder = write_chain(tmp_path, chain_config())
    run_chain(folder, 1, Interrupt())
    assert run_folder.committed_rounds(folder) == 1
    write_json(folder / "round-0" / "checkpoint" / "progress.json", {"attempts": 3})
    run_chain(folder, None, Interrupt())
    assert not (folder / "round-0" / "checkpoint").exists()
    assert outcome(folder) == outcome(undisturbed["mal"])


# ------------------------------------------------------------------------- done, failed, locked


def test_a_finished_chain_returns_at_once_without_torch_and_writes_nothing(undisturbed: dict[str, Path]) -> None:
    folder = undisturbed["mal"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    script = (
        "import sys; from mal import chain; status = chain.main(); "
        "print(status, sorted({'torch', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    ended = python("-c", script, folder)
    assert ended.stdout.split(maxsplit=1) == ["0", "[]\n"], ended.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_error_is_recorded_with_its_traceback_and_not_tried_again(tmp_path: Path) -> None:
    config = replace(chain_config(method="random"), data=str(tmp_path / "nothing"))
    config = replace(config, dataset=replace(config.dataset, source="cifar100"))
    folder = write_chain(tmp_path, config)
    with pytest.raises(ValueError, match="cifar-100-python/train is missing"):
        run_chain(folder, None, Interrupt())
    failure = read_failure(folder)
    assert failure is not None
    assert failure["error"].startswith("ValueError: ")
    assert "cifar-100-python/train is missing" in failure["error"]
    assert "Traceback" in failure["traceback"]
    assert "read_cifar100" in failure["traceback"]
    recorded = (folder / "round-0" / run_folder.FAILED).read_bytes()
    again = run_chain_process(folder)
    assert again.returncode == 1
    assert "failed before: ValueError" in again.stderr
    assert "retry=true" in again.stderr
    assert (folder / "round-0" / run_folder.FAILED).read_bytes() == recorded
    clear_failure(folder)
    assert read_failure(folder) is None


def test_running_out_of_memory_is_told_from_an_error_of_the_code(tmp_path: Path) -> None:
    """A real one, by a limit of the process; more memory, and the same command goes on."""
    folder = write_chain(tmp_path, chain_config("backbone.discriminator=60000", "rounds=1"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

    done = subprocess.run(
        [sys.executable, "-m", "mal.chain", str(folder)],
        env=environment(), preexec_fn=limit, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == EXIT_OUT_OF_MEMORY
    assert "out of memory in round 0: RuntimeError" in done.stderr.splitlines()[-1] or "can't allocate" in done.stderr
    assert read_failure(folder) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("process 1 on n2: OutOfMemoryError: CUDA out of memory."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_memory_runs_out_in_many_words(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_a_method_that_asks_twice_for_an_image_fails_and_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mal.methods import METHODS, Method, Query

    def asks_twice(self: Method, scores: object, budget: int) -> Query:
        return self.setting.query(positions=np.zeros(budget, dtype=np.int64))

    monkeypatch.setattr(METHODS["random"], "select", asks_twice)
    folder = write_chain(tmp_path, chain_config(method="random"))
    with pytest.raises(DamagedRun, match="method random: an index is queried twice"):
        run_chain(folder, None, Interrupt())
    assert not run_folder.is_committed(folder / "round-0")
    monkeypatch.undo()
    with pytest.raises(RoundFailed, match="queried twice"):
        run_chain(folder, None, Interrupt())
    clear_failure(folder)
    run_chain(folder, None, Interrupt())
    assert run_folder.committed_rounds(folder) == 2


def test_a_chain_that_another_process_works_on_is_left_alone_with_76(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config())
    assert not is_locked(folder)
    with locked(folder):
        assert is_locked(folder)
        ended = run_chain_process(folder)
        with pytest.raises(ChainLocked, match="is being worked on"), locked(folder):
            pass
    assert ended.returncode == 76
    assert "is being worked on by" in ended.stderr
    assert not is_locked(folder)
    assert run_folder.round_folders(folder) == []


def test_of_two_writers_one_works_and_the_other_leaves(tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    folder = write_chain(tmp_path, chain_config(method="random"))
    command = [sys.executable, "-m", "mal.chain", str(folder)]
    both = [subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) for _ in range(2)]
    statuses = sorted(process.wait(timeout=120) for process in both)
    assert statuses in ([0, 76], [0, 0])  # [0, 0]: the second one came when all was done
    assert outcome(folder) == outcome(undisturbed["random"])
    assert read(folder / "round-0", "metrics.json")["preemptions"] == 0


def test_storage_that_cannot_be_written_to_is_no_failure_of_the_chain(
    tmp_path: Path, undisturbed: dict[str, Path]
) -> None:
    folder = write_chain(tmp_path, chain_config(method="random"))
    command = [sys.executable, "-m", "mal.chain", str(folder)]
    # Every write to a file fails with an OSError, as on a full or read-only disk; root is not spared either.
    ended = subprocess.run(
        command,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)),
    )
    assert ended.returncode == 1
    assert os.strerror(27) in ended.stderr  # EFBIG
    assert "Traceback" not in ended.stderr
    assert list(folder.rglob(run_folder.FAILED)) == []
    run_chain(folder, None, Interrupt())
    assert outcome(folder) == outcome(undisturbed["random"])


def test_a_chain_that_was_never_launched_is_an_error(tmp_path: Path) -> None:
    ended = run_chain_process(tmp_path / "digits" / "mal" / "seed-0")
    assert ended.returncode == 1
    assert "config.yaml does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------- tampered with


def test_a_damaged_round_stops_the_chain_and_is_named(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config(method="random"))
    run_chain(folder, 1, Interrupt())
    path = folder / "round-0" / "labeled.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(DamagedRun, match=r"round-0/labeled\.npy is not the file that was committed"):
        run_chain(folder, None, Interrupt())
    assert path.read_bytes() == whole[:-8]
    assert not run_folder.is_committed(folder / "round-1")
    path.write_bytes(whole)
    clear_failure(folder)
    run_chain(folder, None, Interrupt())
    assert run_folder.committed_rounds(folder) == 2


def test_a_chain_on_another_pool_is_refused(tmp_path: Path) -> None:
    config = chain_config(method="random")
    folder = write_chain(tmp_path, config)
    run_chain(folder, 1, Interrupt())
    write_chain(tmp_path, replace(config, dataset=replace(config.dataset, pool=500)))
    with pytest.raises(DamagedRun, match="another pool"):
        run_chain(folder, None, Interrupt())


def test_threads_of_a_chain_sleep_while_they_wait() -> None:
    """libgomp reads the variable when torch loads it, so it must be set before; what somebody else has set stays."""
    code = (
        "import os, sys\n"
        "from mal import chain\n"
        "chain.run_chain = lambda *_: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])\n"
        "sys.argv = ['mal.chain', 'nowhere']\n"
        "chain.main()\n"
    )
    assert python("-c", code).stdout.split() == ["False", "PASSIVE"]
    assert python("-c", f"import os; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'\n{code}").stdout.split()[1] == "ACTIVE"


# ------------------------------------------------------------------------- long passes before a round's first step


@pytest.mark.parametrize(("loader", "phase"), [("torch", "pixel statistics"), ("memory", "read images")])
def test_passes_over_image_files_show_life_and_can_be_stopped(
    loader: str, phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mal.data.image_set.BLOCK", 4)
    monkeypatch.setattr("mal.run.heartbeat.BEAT_SECONDS", 0.0)
    config = folder_chain(tmp_path, f"loader={loader}", "workers=1", "initial=6")
    calm, folder = write_chain(tmp_path / "calm", config), write_chain(tmp_path / "stopped", config)
    told = []

    class Stops(Interrupt):
        @property
        def requested(self) -> bool:
            beat = read_progress(folder / "round-0") or {}
            told.append((beat.get("phase"), beat.get("step"), beat.get("steps")))
            self.cause = "a test" if told[-1] == (phase, 8, 24) else self.cause
            return self.cause is not None

    with pytest.raises(Interrupted):
        run_chain(folder, None, Stops())
    assert (phase, 4, 24) in told
    beat = read_progress(folder / "round-0")
    assert beat is not None
    assert (beat["phase"], beat["step"], beat["interrupted"], beat["attempts"]) == (phase, 8, "a test", 1)
    run_chain(folder, None, Interrupt())
    run_chain(calm, None, Interrupt())
    assert outcome(folder) == outcome(calm)
    assert [read(path / "round-0", "metrics.json")["preemptions"] for path in (calm, folder)] == [0, 1]
