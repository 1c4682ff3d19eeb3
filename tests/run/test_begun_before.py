"""Chains that an earlier version began go on: begun_before/ holds rounds of the version before mal/ was put into rooms.

What the two versions compute is compared where both run, byte by byte; here the bits of another machine's rounds could
differ in the last place, so that this test looks at what goes on and from where.
"""

import shutil
from pathlib import Path

import pytest

from mal.chain import run_chain
from mal.config.compose import compose_sweep
from mal.config.frozen import differences, load_chain
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder

BEGUN = Path(__file__).with_name("begun_before")
LAUNCHED = ("dataset=digits", "seeds=1", "rounds=3", "threads=1", "checkpoint_minutes=0.01", "minimax.epochs=4")
# The data set's settings of that version.
LAUNCHED += ("dataset.pad_crop=0", "backbone=small_cnn", "task.epochs=10", "task.lr=0.001")
LAUNCHED += ("minimax.lr_c=0.001", "minimax.weight_decay=0", "loader=memory")


@pytest.mark.parametrize("method", ["mal", "coreset"])
def test_a_chain_of_an_earlier_version_goes_on_from_its_last_round(tmp_path: Path, method: str) -> None:
    chain = run_folder.chain_folder(tmp_path, "digits", method, 0)
    shutil.copytree(run_folder.chain_folder(BEGUN, "digits", method, 0), chain)
    before = run_folder.read_round(chain / "round-0")
    assert load_chain(chain / run_folder.CONFIG).fingerprint() == before.provenance["fingerprint"]
    run_chain(chain, 2, Interrupt())
    after = run_folder.read_round(chain / "round-1")
    assert after.provenance["parent"] == before.digest
    assert after.provenance["fingerprint"] == before.provenance["fingerprint"]
    assert set(after.labeled) == set(before.labeled) | set(before.query)
    assert run_folder.read_round(chain / "round-0").digest == before.digest


@pytest.mark.parametrize("method", ["mal", "coreset"])
def test_launching_it_again_finds_no_difference(method: str) -> None:
    old = load_chain(run_folder.chain_folder(BEGUN, "digits", method, 0) / run_folder.CONFIG)
    (new,) = compose_sweep([*LAUNCHED, f"methods=[{method}]"]).chains
    assert differences(old, new) == []
