"""A network of its own with a loopback whose every packet is caught, for processes of a test."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

#: Of Linux: a new network, all protocols, a packet that goes out, the call that sets an interface's flags.
NEW_NETWORK, EVERYTHING, OUTGOING, SET_FLAGS, UP = 0x40000000, 3, 4, 0x8914, 0x41
TCP = 6
#: Port and port, from where to where.
Way = tuple[int, int]


def enter(network: str) -> None:
    """Have this process live in the network of another one, by its place in /proc."""
    with Path(network).open() as place:
        _call("setns", place.fileno(), NEW_NETWORK)


def _call(name: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name} is not allowed here")


def catch(out: Path) -> None:
    """Live in a new network, and write each packet on its loopback to a file, until SIGTERM."""
    _call("unshare", NEW_NETWORK)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))
    line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**26)
    line.bind(("lo", 0))
    line.settimeout(0.2)
    over: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: over.append(number))
    with out.open("wb", buffering=0) as file:
        out.with_suffix(".ready").touch()
        while True:
            try:
                data, (_, _, kind, *_) = line.recvfrom(2**17)
            except TimeoutError:
                if over:
                    break
                continue
            if kind == OUTGOING:  # each one comes by once more as it arrives
                file.write(struct.pack("<I", len(data)) + data)
        lost = struct.unpack("II", line.getsockopt(263, 6, 8))[1]  # SOL_PACKET, PACKET_STATISTICS
    os._exit(3 if lost else 0)


def packets(path: Path) -> list[bytes]:
    """What was caught, from the Ethernet header on."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def streams(found: list[bytes]) -> list[tuple[Way, bytes]]:
    """The payload of each TCP connection and way, put together by sequence numbers."""
    pieces: dict[Any, list[tuple[int, bytes]]] = defaultdict(list)
    begun: dict[Any, int] = {}
    turn: dict[Way, int] = defaultdict(int)
    for packet in found:
        if packet[12:14] != b"\x08\x00" or packet[23] != TCP:
            continue
        head = 14 + 4 * (packet[14] & 15)
        total = 14 + int.from_bytes(packet[16:18], "big")
        source, sink, number = struct.unpack_from(">HHI", packet, head)
        body = packet[head + 4 * (packet[head + 12] >> 4) : total]
        way = (source, sink)
        if packet[head + 13] & 2:  # SYN: a new connection, maybe on old ports
            turn[way] += 1
            begun[way, turn[way]] = number + 1
        if body:
            key = way, turn[way]
            pieces[key].append(((number - begun.setdefault(key, number)) % 2**32, body))
    return [(key[0], _joined(parts)) for key, parts in pieces.items()]


def _joined(parts: list[tuple[int, bytes]]) -> bytes:
    whole = bytearray()
    for at, body in sorted(parts):
        assert at <= len(whole), "a packet is missing in the capture"
        whole[at : at + len(body)] = body
    return bytes(whole)
