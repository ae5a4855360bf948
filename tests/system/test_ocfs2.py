"""OCFS2 on a drive's shared namespace: the host machine and the machine in the drive work on one tree.

Cluster traffic (heartbeats apart, which are on the namespace) goes through the tunnel. EMUCSD_LONG=1 works for minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emucsd.testbed import Machine, Testbed

pytestmark = pytest.mark.vm

DEVICE = "/dev/nvme0n1"
SHARED = "/shared"
WORKER = Path(__file__).with_name("ocfs2_worker.py")
SCRIPT = "/root/ocfs2_worker.py"
TABLE = Path(__file__).with_name("ocfs2_table.py")
TABLE_SCRIPT = "/root/ocfs2_table.py"
LONG = bool(os.environ.get("EMUCSD_LONG"))
WORK_SECONDS = 120 if LONG else 15
# the cluster's times, lower than what suits people: a node is dead after 14 s of silence
SLOT = "0000:00:10.0"  # as the service of `emucsd up` names the drive
TIMES = "O2CB_HEARTBEAT_THRESHOLD=8 O2CB_IDLE_TIMEOUT_MS=10000"
SLACK_SECONDS = 240.0  # for machines that share two busy cores


def until(condition: Callable[[], bool], what: str, seconds: float = SLACK_SECONDS) -> None:
    """Wait for a condition in a machine, with a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in {seconds:g} s: {what}"
        time.sleep(0.25)


def mount(machine: Machine) -> None:
    """Join the cluster and mount."""
    machine.run(f"{TIMES} emucsd-ocfs2 mount {DEVICE} {SHARED}", check=True)
    machine.put(WORKER, SCRIPT)


def unmount(machine: Machine) -> None:
    """Leave the cluster, where it is in. What a test that failed left running ends."""
    machine.run(f"mountpoint -q {SHARED} && fuser -s -k -m {SHARED}")
    machine.run(f"if mountpoint -q {SHARED}; then emucsd-ocfs2 umount {SHARED}; fi", check=True)


def begin(machine: Machine, tree: str, seconds: float) -> None:
    """Start to work in the background."""
    work = f"python3 {SCRIPT} work {SHARED}/{tree} $(hostname) {seconds} >/root/{tree}.out 2>&1 </dev/null"
    machine.run(f"rm -f /root/{tree}.*; (setsid sh -c '{work}; echo $? >/root/{tree}.status' >/dev/null 2>&1 &)")


def end(machine: Machine, tree: str) -> dict[str, Any]:
    """Wait until the work is over. :returns: what was done"""
    status = ["test", "-s", f"/root/{tree}.status"]
    until(lambda: machine.run(status).status == 0, f"{machine.name} is done", WORK_SECONDS + SLACK_SECONDS)
    out = machine.get(f"/root/{tree}.out").decode()
    assert machine.get(f"/root/{tree}.status") == b"0\n", out
    done: dict[str, Any] = json.loads(out.splitlines()[-1])
    print(f"{machine.name}: {done}")
    return done


def tell(machine: Machine, tree: str) -> dict[str, Any]:
    """All that a machine sees in a tree."""
    told: dict[str, Any] = json.loads(machine.run(f"python3 {SCRIPT} tell {SHARED}/{tree}", check=True).out)
    return told


def synced(machine: Machine, tree: str, node: str) -> int:
    """The last round of a node's that is durable, as some machine sees it; -1: none yet."""
    text = machine.run(f"cat {SHARED}/{tree}/synced-{node} 2>/dev/null").out
    return int(text) if text else -1


@pytest.fixture(scope="module")
def mounted(testbed: Testbed) -> Iterator[Testbed]:
    """Both machines have the filesystem mounted, by the service: one of them made it. It is unmounted at the end."""
    machines = [testbed.host, testbed.isp(0)]
    testbed.host.run(["blkdiscard", "-f", DEVICE], check=True)
    serve = f"echo $$ >/run/shared.pid; exec env {TIMES} emucsd-ocfs2 keep {SLOT} {SHARED}"
    for machine in machines:
        machine.run(f"(setsid sh -c '{serve}' >/var/log/shared.log 2>&1 </dev/null &)")
        machine.put(WORKER, SCRIPT)
    for machine in machines:
        until(lambda there=machine: there.run(["mountpoint", "-q", SHARED]).status == 0, "it is mounted")  # type: ignore[misc]
    yield testbed
    for machine in machines:
        machine.run("test ! -e /run/shared.pid || kill $(cat /run/shared.pid)")
        unmount(machine)
    testbed.host.run(f"wipefs -q -a {DEVICE}", check=True)


def test_two_machines_work_on_one_tree(mounted: Testbed) -> None:
    """Both create, append, rename, lock, read and remove at once; then both see the same, and nothing is lost."""
    host, isp = mounted.host, mounted.isp(0)
    for machine in (host, isp):
        begin(machine, "both", WORK_SECONDS)
    rounds = {machine.name: int(end(machine, "both")["rounds"]) for machine in (host, isp)}
    assert min(rounds.values()) > 0
    seen = [tell(machine, "both") for machine in (host, isp)]
    assert seen[0] == seen[1]
    assert seen[0]["wrong"] == []
    assert seen[0]["counter"] == sum(rounds.values()), "an update under the lock was lost"
    lines = {f"{node}-{number}" for node, count in rounds.items() for number in range(count)}
    assert set(seen[0]["lines"]) == lines
    assert len(seen[0]["lines"]) == len(lines), "a line was appended twice"


def test_what_one_writes_the_other_reads_at_once(mounted: Testbed) -> None:
    """No flush between: whoever asks for a file's lock makes the other one write it out."""
    host, isp = mounted.host, mounted.isp(0)
    for number, (writer, reader) in enumerate([(host, isp), (isp, host), (host, isp)]):
        writer.run(f"echo {number} >{SHARED}/note && mkdir {SHARED}/made-{number}", check=True)
        assert reader.run(f"cat {SHARED}/note; ls -d {SHARED}/made-{number}").out == (
            f"{number}\n{SHARED}/made-{number}\n"
        )


def test_a_table_is_a_file_of_both(mounted: Testbed) -> None:
    """A table that the host makes is looked up by either through its own port, and so is a row that one rewrote."""
    host, isp = mounted.host, mounted.isp(0)
    for machine in (host, isp):
        machine.put(TABLE, TABLE_SCRIPT)

    def sums(machine: Machine, action: str) -> list[float]:
        out = machine.run(f"python3 {TABLE_SCRIPT} {action} {SHARED}/rows", check=True).out
        return [float(value) for value in json.loads(out.splitlines()[-1])]

    values = [[(row * 32 + column) % 1009 for column in range(32)] for row in range(5000)]
    wanted = [float(sum(sum(values[row]) for row in bag)) for bag in ([0, 1, 2, 3], [4999, 17, 17, 250])]
    assert sums(host, "make") == wanted
    assert sums(isp, "ask") == wanted
    isp.run(f"python3 {TABLE_SCRIPT} change {SHARED}/rows 17", check=True)
    wanted[1] -= 4 * sum(values[17])
    assert sums(host, "ask") == wanted
    assert sums(isp, "ask") == wanted


def test_one_machine_dies_and_the_other_goes_on(mounted: Testbed) -> None:
    """The survivor declares it dead, replays its journal and works on; what it had synced is there; it comes back."""
    host, isp = mounted.host, mounted.isp(0)
    begin(host, "crash", 3600)
    begin(isp, "crash", 3600)
    until(lambda: synced(host, "crash", "isp0") >= 4, "the machine in the drive has synced something")
    killed = time.monotonic()
    isp.kill()
    durable = synced(host, "crash", "isp0")
    before = synced(host, "crash", "host")
    until(lambda: synced(host, "crash", "host") > before + 4, "the host machine goes on")
    print(f"the host machine had gone on after {time.monotonic() - killed:.1f} s")
    host.run(["touch", f"{SHARED}/crash/stop-host"], check=True)
    end(host, "crash")
    assert "End replay journal (node 1" in host.run("dmesg").out
    assert isp.start()["state"] == "up"
    mount(isp)
    seen = [tell(machine, "crash") for machine in (host, isp)]
    assert seen[0] == seen[1]
    assert seen[0]["wrong"] == []
    assert {f"isp0-{number}" for number in range(durable + 1)} <= set(seen[0]["lines"])
    begin(isp, "again", 3)
    assert end(isp, "again")["rounds"] > 0
    assert tell(host, "again")["wrong"] == []
