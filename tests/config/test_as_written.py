"""A cluster's words and times are what its file says, not what YAML 1.1 makes of them."""

from pathlib import Path

from mal.config.compose import compose_sweep
from slurm.profile import load_profile

PROFILE = """
defaults: [parent, _self_]
name: mine
account: 00123
qos: off
gpu_type: 1e3
time:
  digits: {fit: 1:30:00, task: 20}
  imagenet: 1-12:00
sbatch: {begin: 16:00, nice: 010, exclusive: true}
"""
PARENT = "defaults: [slurm, _self_]\npartition: 1_000\ntime: {default: 8:00:00}\n"


def test_times_and_names_in_a_profile(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text(PROFILE)
    (tmp_path / "cluster" / "parent.yaml").write_text(PARENT)
    chosen = [f"conf={tmp_path}", "cluster=mine"]
    section = compose_sweep(chosen).cluster
    profile = load_profile(section)
    assert (profile.account, profile.partition, profile.qos, profile.gpu_type) == ("00123", "1_000", "off", "1e3")
    assert [profile.minutes(name) for name in ("other", "digits", "imagenet")] == [480, 110, 2160]
    assert profile.sbatch == {"begin": "16:00", "nice": "010", "exclusive": True}
    changed = load_profile(compose_sweep([*chosen, "cluster.time.default=30", "cluster.account=x"]).cluster)
    assert (changed.minutes("other"), changed.account) == (30, "x")


def test_times_on_the_command_line() -> None:
    chosen = ["cluster=slurm", "cluster.time.default=8:00:00", "cluster.time.digits=1-2", "cluster.account=00123"]
    profile = load_profile(compose_sweep(chosen).cluster)
    assert (profile.minutes("other"), profile.minutes("digits"), profile.account) == (480, 1560, "00123")
