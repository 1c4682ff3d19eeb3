"""Two machines that each call themselves 127.0.1.1, as Debian's and Ubuntu's /etc/hosts do: network namespaces."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from benchmarks.scaling import nodes
from mal.process.distributed import choose_interface
from mal.run import folder as run_folder
from tests.chains import ROOT, chain_config, environment, write_chain

HOSTS = (
    "127.0.0.1 localhost\n127.0.1.1 nodea\n10.98.7.2 nodeb\n",
    "127.0.0.1 localhost\n127.0.1.1 nodeb\n10.98.7.1 nodea\n",
)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, each with a hosts file of its own."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    with ExitStack() as stack:
        try:
            names = stack.enter_context(nodes(2))
        except subprocess.CalledProcessError as refused:
            pytest.skip(f"no network namespaces here: {refused.stderr.decode().strip()}")
        for name, hosts in zip(names, HOSTS, strict=True):
            folder = Path("/etc/netns", name)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(hosts)
        yield names


@pytest.mark.slow
def test_processes_on_two_hosts_meet_though_each_calls_itself_127_0_1_1(two_hosts: list[str], tmp_path: Path) -> None:
    config = chain_config("rounds=1", "collective_minutes=1", method="random")
    folder = write_chain(tmp_path, config)
    ranks = []
    for rank, name in enumerate(two_hosts):
        variables = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "nodea", "MASTER_PORT": 29557}
        named = f'hostname node{name[-1]}; exec "$@"'
        there = [
            "ip",
            "netns",
            "exec",
            name,
            "unshare",
            "--uts",
            "sh",
            "-c",
            named,
            "sh",
        ]
        ranks.append(
            subprocess.Popen(
                [*there, sys.executable, "-m", "mal.chain", str(folder)],
                env=environment(**{key: str(value) for key, value in variables.items()}),
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert run_folder.read_round(folder / "round-0").provenance["world_size"] == 2


def own_address() -> tuple[str, str]:
    """A network interface of this machine besides loopback, and its IPv4 address."""
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                return name, address.address
    pytest.skip("this machine has no network but its own")


def unset_for_now(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was not set: what the test sets is gone after it."""
    monkeypatch.setenv(variable, "")
    monkeypatch.delenv(variable)


@pytest.mark.parametrize("given", [None, "mine"])
def test_the_interface_is_that_which_leads_to_the_master(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 knows itself as 127.0.1.1; what rank 1 sees of it tells both which network they share."""
    interface, address = own_address()
    for masters, expected in (((address, address), interface), (("127.0.1.1", address), interface)):
        unset_for_now("GLOO_SOCKET_IFNAME", monkeypatch)
        if given:
            monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
        store = dist.HashStore()
        other = threading.Thread(target=choose_interface, args=(store, 1, 2, masters[1]))
        other.start()
        choose_interface(store, 0, 2, masters[0])
        other.join()
        assert os.environ["GLOO_SOCKET_IFNAME"] == (given or expected)


def test_processes_of_one_machine_meet_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    unset_for_now("GLOO_SOCKET_IFNAME", monkeypatch)
    choose_interface(dist.HashStore(), 0, 1, "127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
