"""Two machines that each call themselves 127.0.1.1, as Debian's and Ubuntu's /etc/hosts do: network namespaces."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from mal.process.distributed import choose_interface
from mal.run import folder as run_folder
from tests.chains import ROOT, chain_config, environment, write_chain

HOSTS = {
    "mal-test-a": "127.0.0.1 localhost\n127.0.1.1 nodea\n10.99.7.2 nodeb\n",
    "mal-test-b": "127.0.0.1 localhost\n127.0.1.1 nodeb\n10.99.7.1 nodea\n",
}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, each with a hosts file of its own."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = list(HOSTS)
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"no network namespaces here: {refused.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "mal-a", "netns", names[0], "type", "veth", "peer", "name", "mal-b", "netns", names[1])
        for number, (name, link) in enumerate(zip(names, ("mal-a", "mal-b"), strict=True), 1):
            ip("-n", name, "addr", "add", f"10.99.7.{number}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")
            hosts = Path("/etc/netns", name, "hosts")
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(HOSTS[name])
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=60)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


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


@pytest.mark.parametrize("given", [None, "mine"])
def test_the_interface_is_that_which_leads_to_the_master(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 knows itself as 127.0.1.1; what rank 1 sees of it tells both which network they share."""
    interface, address = own_address()
    for masters, expected in (((address, address), interface), (("127.0.1.1", address), interface)):
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        if given:
            monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
        store = dist.HashStore()
        other = threading.Thread(target=choose_interface, args=(store, 1, 2, masters[1]))
        other.start()
        choose_interface(store, 0, 2, masters[0])
        other.join()
        assert os.environ["GLOO_SOCKET_IFNAME"] == (given or expected)


def test_processes_of_one_machine_meet_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    choose_interface(dist.HashStore(), 0, 1, "127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
