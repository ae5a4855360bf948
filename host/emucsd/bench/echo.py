"""Round trips by ICMP echo, without the ping program: ``python -m emucsd.bench.echo ADDRESS COUNT GAP`` prints JSON.

It takes CAP_NET_RAW, which a namespace of one's own gives.
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import struct
import sys
import time

_HEADER = struct.Struct(">BBHHH")
_REPLY, _REQUEST = 0, 8
_IP_HEADER = 20
_SECONDS = 2.0


def checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def round_trip(link: socket.socket, address: str, number: int, payload: bytes) -> float | None:
    """Seconds of one echo, None when nothing came back in time."""
    identifier = os.getpid() & 0xFFFF
    head = _HEADER.pack(_REQUEST, 0, 0, identifier, number)
    packet = _HEADER.pack(_REQUEST, 0, checksum(head + payload), identifier, number) + payload
    begun = time.perf_counter()
    link.sendto(packet, (address, 0))
    while (left := begun + _SECONDS - time.perf_counter()) > 0:
        if not select.select([link], [], [], left)[0]:
            break
        kind, _, _, found, sequence = _HEADER.unpack_from(link.recv(2048), _IP_HEADER)
        if (kind, found, sequence) == (_REPLY, identifier, number):
            return time.perf_counter() - begun
    return None


def measure(address: str, count: int, gap: float) -> dict[str, float | int | None]:
    """Microseconds, over ``count`` echoes of 56 bytes that start ``gap`` seconds after the last one's answer."""
    times: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
        for number in range(count):
            taken = round_trip(link, address, number & 0xFFFF, b"x" * 56)
            if taken is not None:
                times.append(taken * 1e6)
            time.sleep(gap)
    times.sort()
    return {
        "median_us": statistics.median(times) if times else None,
        "p99_us": times[int(0.99 * len(times))] if times else None,
        "lost": count - len(times),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
