"""A chain killed with SIGKILL in training, scoring, checkpointing and committing (more: python tests/kill_chain.py)."""

from chains import ROOT, python


def test_a_killed_chain_run_until_done_equals_an_undisturbed_one() -> None:
    ended = python(ROOT / "tests" / "kill_chain.py", "--kills", "4", "--seed", "1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 kills (1 training, 1 scoring, 1 checkpointing, 1 committing)" in ended.stdout
    assert ended.stdout.strip().endswith("byte-identical: labeled.npy, query.npy, metric values, histories of losses")
