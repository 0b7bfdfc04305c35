"""The machines of a run: a number of processes on this machine, or those of a hosts file. Imports no MLX.

The format is that of `mlx.launch`, and `mlx.distributed_config` writes such files:

    {"hosts": [{"ssh": "mac1.local", "ips": ["10.0.0.1"]},
               {"ssh": "mac2.local", "ips": ["10.0.0.2"], "share": 2}]}

Each machine is one rank, the first of them rank 0. `share`, its share of the work, is an extension.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError
from ..core.files import user_path
from ..core.formatting import brief
from ..core.parsing import parsing, read_json

LOCALHOST = "127.0.0.1"
# As in mlx.launch; each further rank has the next port.
FIRST_PORT = 32323
_MOST_RANKS = 256
_PORT_TRIES = 64
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Host:
    """The machine of a rank: its name for ssh, and its IPv4 address on the network that the ranks share."""

    ssh: str
    ip: str


@dataclass(frozen=True)
class Hosts:
    """The machines of a run, by rank.

    Attributes:
        envs: `NAME=VALUE` for the environment of every rank.
        shares: of the work, by rank, such as `1,2`; None if the file has none.
    """

    hosts: tuple[Host, ...]
    envs: tuple[str, ...] = ()
    shares: str | None = None

    def addresses(self, port: int | None) -> list[str]:
        """The `IP:PORT` at which each rank listens.

        Args:
            port: of rank 0; each further rank has the next. None: `FIRST_PORT`, or free ports if all ranks are on this
                machine.
        """
        if port is None:
            local = all(host.ip == LOCALHOST for host in self.hosts)
            port = _free_ports(len(self.hosts)) if local else FIRST_PORT
        return [f"{host.ip}:{port + rank}" for rank, host in enumerate(self.hosts)]


def read_hosts(text: str) -> Hosts:
    """Reads the value of `--hosts`: a number of processes on this machine, or a file.

    Raises:
        ConfigError: the file is missing, no JSON, or does not describe machines; with all problems.
    """
    if text.isdecimal():
        count = int(text[:10])
        if not 1 <= count <= _MOST_RANKS:
            raise ConfigError(
                f"--hosts {brief(text)}: from 1 to {_MOST_RANKS} processes can share a run", "give another number"
            )
        return Hosts((Host(LOCALHOST, LOCALHOST),) * count)
    path = user_path(text)
    fix = "name a hosts file, as `mlx.distributed_config` writes them, or a number of processes on this machine"
    with parsing(path, ConfigError, fix):
        described = read_json(path, _MOST_BYTES)
    problems: list[str] = []
    hosts = _read(described, problems)
    if problems:
        raise ConfigError(
            f"the hosts file {path}: " + (problems[0] if len(problems) == 1 else f"{len(problems)} problems"),
            'each host is {"ssh": NAME, "ips": [ADDRESS]} (docs/distributed.md)',
            problems if len(problems) > 1 else (),
        )
    return hosts


def _read(described: Any, problems: list[str]) -> Hosts:
    """The hosts of a file's content; appends its faults to `problems`."""
    whole = described if isinstance(described, dict) else {"hosts": described}
    backend, envs, entries = whole.get("backend") or "ring", whole.get("envs", []), whole.get("hosts")
    if backend != "ring":
        problems.append(f"backend: --hosts starts a ring; for {brief(backend)} use `mlx.launch ... mlxzo train`")
    if not isinstance(envs, list) or not all(isinstance(env, str) and "=" in env for env in envs):
        problems.append("envs: expected a list of texts NAME=VALUE")
        envs = []
    if not isinstance(entries, list) or not entries:
        problems.append("hosts: expected a list of at least one host")
        entries = []
    if len(entries) > _MOST_RANKS:
        problems.append(f"hosts: {len(entries)} are given, and at most {_MOST_RANKS} can share a run")
    hosts = [_read_host(entry, rank, problems) for rank, entry in enumerate(entries)]
    shares = [entry.get("share") for entry in entries if isinstance(entry, dict)]
    if any(share is not None for share in shares):
        if not all(
            isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < 1e9 for share in shares
        ):
            problems.append("share: give every host a positive number, or none of them")
        return Hosts(tuple(hosts), tuple(envs), ",".join(map(str, shares)))
    return Hosts(tuple(hosts), tuple(envs))


def _read_host(entry: Any, rank: int, problems: list[str]) -> Host:
    name = f"host {rank + 1}"
    if not isinstance(entry, dict):
        problems.append(f"{name}: expected an object, not {brief(repr(entry))}")
        return Host("", "")
    ssh, ips = entry.get("ssh"), entry.get("ips")
    # A name with a leading dash would be an option of ssh.
    if not isinstance(ssh, str) or not ssh.strip() or ssh.startswith("-"):
        problems.append(f"{name}: ssh: expected the name of the machine for ssh, not {brief(repr(ssh))}")
    if not isinstance(ips, list) or not ips:
        problems.append(f"{name}: ips: expected a list with the machine's address, not {brief(repr(ips))}")
        return Host("", "")
    try:
        ip = str(ipaddress.IPv4Address(ips[0]))
    except ValueError:
        problems.append(f"{name}: ips: {brief(repr(ips[0]))} is no IPv4 address")
        ip = ""
    return Host(LOCALHOST if ssh == "localhost" else str(ssh), ip)


def _free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    for _ in range(_PORT_TRIES):
        with socket.socket() as found:
            found.bind((LOCALHOST, 0))
            first = found.getsockname()[1]
        if first + count <= 1 << 16 and all(_is_free(port) for port in range(first, first + count)):
            return first
    return FIRST_PORT


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind((LOCALHOST, port))
        except OSError:
            return False
    return True
