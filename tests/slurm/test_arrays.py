"""Large sweeps as arrays: each chain is a task, found, cancelled, requeued and healed by itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from mal.run import folder as run_folder
from slurm.attempts import read_attempts
from slurm.client import SlurmError
from slurm.local import LocalSlurm
from slurm.profile import load_profile
from slurm.squeue import Job, array_name, by_chain, read_queue
from slurm.submit import Submitter, Wanted
from slurm.submitted import FILE, FOLDER, claim, note_array, note_submitted_array, read_submitted, read_task
from sweeps.cancel import main as cancel
from sweeps.launch import main as launch
from sweeps.status import main as status
from tests.chains import SHORT, outcome
from tests.slurm.fakes import put_in_front
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]
ON_SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0", "cluster.time.digits=10")
ARRAY = (*SHORT, *ON_SLURM, "methods=[random]", "seeds=3", "cluster.array_from=6")
WAITING = Job("7_1", "", "PENDING", "", None, None, "", "me", "low", None)


def submitter(runs: Path, **keys: object) -> Submitter:
    profile = load_profile({"name": "mine", "kind": "slurm", "gpus_per_node": 0, "array_from": 6, **keys})
    return Submitter("a", runs, profile, runs / "code")


def wanted(*committed: int, target: int = 3) -> list[Wanted]:
    return [Wanted("mal", seed, "digits", done, target) for seed, done in enumerate(committed)]


def test_many_missing_jobs_become_one_task_for_each_chain(tmp_path: Path) -> None:
    assert [s.task for s in submitter(tmp_path).missing(wanted(2, 0), [])] == [False] * 4
    tasks = submitter(tmp_path).missing(wanted(0, 2, 0), [])
    assert [(s.chains, s.until, s.rounds, s.task) for s in tasks] == [
        (("mal/seed-0",), 3, 3, True),
        (("mal/seed-1",), 3, 1, True),
        (("mal/seed-2",), 3, 3, True),
    ]
    packed = submitter(tmp_path, pack=2, array_from=4).missing(wanted(0, 0, 0), [])
    assert [(s.chains, s.until) for s in packed] == [(("mal/seed-0", "mal/seed-1"), 3), (("mal/seed-2",), 3)]
    script = submitter(tmp_path).array_script(tasks, "0123abcd")
    assert "#SBATCH --array=0-2\n" in script
    assert "--dependency" not in script
    assert f"slurm.job --array {tmp_path}/a/.slurm/array-0123abcd.json --minutes 240" in script


def test_a_task_in_the_queue_is_its_chain_s_job(tmp_path: Path) -> None:
    """Also where the launcher was killed before it noted the id; raised rounds are told to the task."""
    sweep = tmp_path / "a"
    digest = note_array(sweep, [(("mal/seed-0",), 2), (("mal/seed-1",), 2)])
    name = array_name("a", digest, tmp_path)
    queue = [replace(WAITING, name=name), replace(WAITING, name=name, id="7_0", state="RUNNING")]
    for noted in (False, True):
        if noted:
            note_submitted_array(sweep, "7", name, digest, "7_%a.log")
        chains = by_chain(claim(queue, read_submitted(sweep), "a", tmp_path), "a", tmp_path)
        assert {chain: [job.id for job in jobs] for chain, jobs in chains.items()} == {
            ("mal", 0): ["7_0"],
            ("mal", 1): ["7_1"],
        }
    assert read_submitted(sweep)["7_1"].log == "7_1.log"
    assert read_task(sweep / FOLDER / f"array-{digest}.json", 1) == (("mal/seed-1",), 2)
    ours = submitter(tmp_path)
    assert ours.missing(wanted(0, 0), claim(queue, read_submitted(sweep), "a", tmp_path)) == []
    ours.prolong(wanted(0, 0))
    assert {job: entry.aim for job, entry in read_submitted(sweep).items()} == {"7_0": 3, "7_1": 3}
    other = submitter(tmp_path)
    assert [s.until for s in other.missing(wanted(0), [])] == [1, 2, 3]
    other.prolong(wanted(0))  # has nothing in the queue


def test_an_array_is_as_large_as_slurm_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused above a size that only Slurm knows (MaxArraySize), then at a limit that passes; or for good."""
    taken = tmp_path / "taken"
    taken.touch()
    put_in_front(
        tmp_path / "bin",
        monkeypatch,
        squeue="exit 1",
        sinfo="exit 1",
        sbatch=f"""last=$(sed -n 's/^#SBATCH --array=0-//p')
[ "$last" -lt 3 ] || {{ echo "Invalid job array specification" >&2; exit 1; }}
[ $(wc -l < {taken}) -lt 2 ] || {{ echo "QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}
echo $last >> {taken}; wc -l < {taken}""",
    )
    ours = submitter(tmp_path)
    tasks = ours.missing(wanted(*[0] * 9), [])
    number, words = ours.submit(tasks, lambda done: None)
    assert taken.read_text().split() == ["2", "2"]
    assert (number, words) == (6, "QOSMaxSubmitJobPerUserLimit")
    assert list(read_submitted(tmp_path / "a")) == ["1_0", "1_1", "1_2", "2_0", "2_1", "2_2"]
    put_in_front(tmp_path / "bin", monkeypatch, sbatch="echo 'Invalid partition name specified' >&2; exit 1")
    with pytest.raises(SlurmError, match="Invalid partition"):
        ours.submit(tasks, lambda done: None)


@pytest.mark.slurm
def test_an_array_s_tasks_are_told_apart(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By launch, status and cancel, while they wait, folded or not."""
    arguments = [*ARRAY, f"runs={tmp_path}", "+cluster.sbatch.begin=now+1hour"]
    assert launch(arguments) == 0
    assert "3 jobs submitted" in capsys.readouterr().out
    tasks = [job.id for job in read_queue()]
    array = tasks[0].partition("_")[0]
    assert tasks == [f"{array}_0", f"{array}_1", f"{array}_2"]
    assert launch(arguments) == 0
    assert "0 jobs submitted" in capsys.readouterr().out
    notes = tmp_path / "digits" / FOLDER / FILE
    noted = notes.read_text()
    notes.unlink()  # as if the launcher had been killed after sbatch
    assert launch(arguments) == 0
    assert "0 jobs submitted" in capsys.readouterr().out
    notes.write_text(noted)
    cluster.run("scontrol", "hold", f"{array}_2")
    assert status([f"runs={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "2 queued, 1 stuck" in said
    assert f"`scontrol release {array}_2`" in said
    assert cancel([f"runs={tmp_path}", "name=digits", "seed=1"]) == 0
    assert "1 jobs cancelled" in capsys.readouterr().out
    assert [job.id for job in read_queue() if job.alive] == [f"{array}_0", f"{array}_2"]
    assert launch(arguments) == 1  # the held one
    assert "2 jobs submitted" in capsys.readouterr().out  # the rounds of the chain that was cancelled, as usual


@pytest.mark.slurm
def test_an_array_s_tasks_are_requeued_and_healed_one_by_one(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARRAY, f"runs={tmp_path}", "task.epochs=20", "checkpoint_minutes=0.01"]
    assert launch(arguments) == 0
    chains = [tmp_path / "digits" / "random" / f"seed-{seed}" for seed in range(3)]
    array = read_queue()[0].id.partition("_")[0]
    wait_until(lambda: list(chains[0].rglob("*.ckpt")), "the first chain to train", timeout_s=180)
    cluster.run("scontrol", "requeue", f"{array}_0")
    cluster.run("scancel", f"{array}_1")
    wait_until(lambda: not read_queue(), "the array", timeout_s=300)
    assert [run_folder.committed_rounds(chain) for chain in chains[::2]] == [2, 2]
    assert {attempt.job for attempt in read_attempts(chains[0])} == {f"{array}_0"}
    assert (chains[2] / "slurm" / f"{array}_2.log").is_file()
    assert launch(arguments) == 0  # what was cancelled
    wait_until(lambda: not read_queue(), "the chain that was cancelled", timeout_s=180)
    assert run_folder.committed_rounds(chains[1]) == 2
    calm = tmp_path / "calm"
    assert launch([*SHORT, "methods=[random]", "seeds=1", "task.epochs=20", f"runs={calm}", "cluster=local"]) == 0
    assert outcome(chains[0]) == outcome(calm / "digits" / "random" / "seed-0")
