"""A chain killed with SIGKILL in training, scoring, checkpointing and committing (more: python -m tests.kill_chain)."""

from tests.chains import python


def test_a_killed_chain_run_until_done_equals_an_undisturbed_one() -> None:
    ended = python("-m", "tests.kill_chain", "--kills", "4", "--seed", "1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 kills (1 training, 1 scoring, 1 checkpointing, 1 committing)" in ended.stdout
    assert ended.stdout.strip().endswith("byte-identical: labeled.npy, query.npy, metric values, histories of losses")
