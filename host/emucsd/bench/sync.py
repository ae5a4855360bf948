"""Gradients over the tunnel: MobileNetV2's, between the host and one engine, beside iperf3 on the same way."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emucsd.errors import StartFailed
from emucsd.stannis.launch.embedded import EmbeddedDrives, EngineOptions
from emucsd.stannis.launch.nodes import Node, Running

Tell = Callable[[str], None]
ROUNDS = 40
IPERF_PORT = 5201


def sync_figures(folder: Path, seconds: float, tell: Tell) -> dict[str, Any]:
    """MobileNetV2's gradients between the host and one engine that is not held back, and iperf3 between the same two.

    With two ranks an all-reduce carries all gradients once in each direction, at the same time. ``sync_share`` is all
    that it carries a second against iperf3 in one direction; ``sync_bidir_share`` each way against each way of iperf3
    with ``--bidir``.

    :param seconds: of each run of iperf3
    :returns: rates in MB/s and each way; shares; None for all where iperf3 is not installed, which ``skipped`` says
    """
    if shutil.which("iperf3") is None:
        return {"sync_share": None, "skipped": "iperf3 is not installed"}
    with contextlib.ExitStack() as stack:
        drives = EmbeddedDrives.make(1, folder, EngineOptions(cpu_share=1.0), tell, profile="null")
        stack.callback(drives.close)
        host, engine = drives.host(), drives.engine(0)
        for node in (host, engine):
            stack.callback(node.close)
        tell("iperf3")
        before = iperf(host, engine, seconds)
        tell("gradients of MobileNetV2")
        sums = all_reduces(host, engine, ROUNDS)
        tell("iperf3 again")
        after = iperf(host, engine, seconds)
    one_way = statistics.mean((before["one_way"], after["one_way"]))
    both = statistics.mean((before["both_ways"], after["both_ways"]))
    rate = sums["bytes"] / statistics.median(sums["seconds"])
    return {
        "gradient_bytes": sums["bytes"],
        "sync_seconds": statistics.median(sums["seconds"]),
        "sync_mb": rate / 1e6,
        "iperf_mb": one_way / 1e6,
        "iperf_bidir_mb": both / 1e6,
        "sync_share": 2 * rate / one_way,
        "sync_bidir_share": rate / both,
    }


def all_reduces(host: Node, engine: Node, rounds: int) -> dict[str, Any]:
    """Rounds between two nodes. :returns: what rank 0 measured"""
    words = ["-m", "emucsd.bench.allreduce", "--size", "2", "--rounds", str(rounds)]
    first = host.start([host.python, *words, "--rank", "0", "--address", host.address], {}, {})
    with _ending(first):
        lines = first.lines()
        port = _json_line(lines, "store")["store"]
        store = f"{host.address}:{port}"
        other = engine.start(
            [engine.python, *words, "--rank", "1", "--address", engine.address, "--store", store], {}, {}
        )
        with _ending(other):
            threading.Thread(target=lambda: list(other.lines()), daemon=True).start()
            return _json_line(lines, "seconds")


def iperf(host: Node, engine: Node, seconds: float) -> dict[str, float]:
    """Bytes/s that arrive, one connection: to the engine alone, and each way while both go on."""
    server = engine.start(["iperf3", "-s", "-p", str(IPERF_PORT)], {}, {})
    with _ending(server):
        threading.Thread(target=lambda: list(server.lines()), daemon=True).start()
        one_way = _iperf_client(host, engine, seconds)["sum_received"]["bits_per_second"] / 8
        found = _iperf_client(host, engine, seconds, "--bidir")
        ways = (found["sum_received"], found["sum_received_bidir_reverse"])
        return {"one_way": one_way, "both_ways": statistics.mean(way["bits_per_second"] / 8 for way in ways)}


def _iperf_client(host: Node, engine: Node, seconds: float, *words: str) -> dict[str, Any]:
    said = ""
    for _ in range(50):  # the server may not listen yet
        client = host.start(
            ["iperf3", "-c", engine.address, "-p", str(IPERF_PORT), "-t", f"{seconds:g}", "-J", *words], {}, {}
        )
        said = "\n".join(client.lines())
        if client.wait().ok and "sum_received" in (end := json.loads(said)["end"]):
            return dict(end)
        time.sleep(0.1)
    raise StartFailed(f"iperf3 does not reach {engine.name}: {said.strip()[-300:]}")


def _json_line(lines: Any, key: str) -> dict[str, Any]:
    """The next line that is a JSON object with this key. :raises StartFailed: none came"""
    heard = []
    for line in lines:
        heard.append(line)
        if line.startswith("{") and key in (found := json.loads(line)):
            return dict(found)
    raise StartFailed("a rank ended before it had measured:\n" + "\n".join(heard[-10:]))


@contextlib.contextmanager
def _ending(running: Running) -> Iterator[None]:
    try:
        yield
    finally:
        running.kill()
