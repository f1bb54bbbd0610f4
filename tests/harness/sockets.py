"""Listening TCP sockets of processes, from /proc."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp."""


class Listener(NamedTuple):
    """A listening TCP socket."""

    pid: int
    address: IPv4Address | IPv6Address
    port: int


def listeners(pids: Iterable[int]) -> list[Listener]:
    """The listening TCP sockets of `pids`, IPv4 and IPv6; processes that have ended have none."""
    owners = {inode: pid for pid in pids for inode in _socket_inodes(pid)}
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and (pid := owners.get(fields[9])):
                address, port = fields[1].split(":")
                found.append(Listener(pid, parse_address(address), int(port, 16)))
    return found


def beyond_loopback(found: Iterable[Listener]) -> list[Listener]:
    """The sockets that other machines can reach."""
    return [one for one in found if not _is_loopback(one.address)]


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """An address of /proc/net/tcp or tcp6: words of 32 bits in the byte order of the machine."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return ip_address(struct.pack(f"={len(words)}I", *words))


def _is_loopback(address: IPv4Address | IPv6Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (mapped or address).is_loopback


def _socket_inodes(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(link.readlink())
                if target.startswith("socket:["):
                    found.append(target[len("socket:[") : -1])
    return found
