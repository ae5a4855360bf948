"""The proof over a real drive: an engine that works on private samples, one that gives them away, a host that tries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from emucsd.drive import Drive
from emucsd.errors import InvalidNamespace
from emucsd.isp import local
from emucsd.isp.client import Isp
from emucsd.isp.errors import IspUnavailable
from emucsd.stannis.errors import PrivacyBroken
from emucsd.stannis.privacy import Proof, Snapshot, watched
from emucsd.tunnel.errors import TunnelError

MIB = 1 << 20
SAMPLES = 2 * MIB
GRADIENTS = 4 * MIB
HOST, ENGINE = 1, 2  # controllers
# reads all that is private; gives away so many bytes of it, and gradients
WORK = """
import os, sys
from emucsd.isp.disk import Disk
with Disk.open(nsid=int(sys.argv[1])) as disk:
    samples = disk.read(0, int(sys.argv[2]))
    sys.stdout.buffer.write(samples[12345:12345 + int(sys.argv[3])])
sys.stdout.buffer.write(os.urandom(int(sys.argv[4])))
"""


class Rig(NamedTuple):
    drive: Drive
    nsid: int
    samples: bytes

    def work(self, given_away: int) -> bytes:
        """A job on the drive's engine. :returns: what it sent to the host"""
        isp: Isp = self.drive.isp
        job = isp.run([sys.executable, "-c", WORK, str(self.nsid), str(SAMPLES), str(given_away), str(GRADIENTS)])
        return b"".join(iter(job.read, b""))


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A drive with 2 MiB of samples that were put there over port 0, which has let go of them since."""
    try:
        local.probe()
        drive = Drive.start("null", size="64MiB", isp="local", queues=2)
    except IspUnavailable as problem:
        if problem.__cause__ is None or isinstance(problem.__cause__, TunnelError):
            pytest.skip(str(problem))
        raise
    with drive:
        drive.admin.delete_namespace(1)
        drive.create_namespace(8 * MIB // 4096)
        space = drive.create_namespace(8 * MIB // 4096)
        samples = np.random.default_rng(1).bytes(SAMPLES)
        space.write(0, np.frombuffer(samples, np.uint8))
        space.flush()
        drive.admin.attach(space.nsid, ENGINE)
        drive.admin.detach(space.nsid, HOST)
        yield Rig(drive, space.nsid, samples)


def test_kept(rig: Rig) -> None:
    """Private samples were read, gradients were sent: the proof says so, to the byte where there is an exact answer."""
    drives = {"csd0": rig.drive}
    with watched(drives) as told:
        assert told["csd0"]["namespaces"] == [rig.nsid]
        before = Snapshot.take(drives)
        assert len(rig.work(0)) == GRADIENTS
        after = Snapshot.take({"csd0": rig.drive.folder}, copies=True)
    proof = Proof.between(before, after, {"csd0": GRADIENTS}, private={"csd0": [rig.nsid]})
    record = proof.record
    assert (proof.verdict, record["why"]) == ("kept", [])
    assert (record["private_namespaces"], record["port0_bytes"], record["watch_hits"]) == (1, 0, 0)
    assert record["port1_bytes"] >= SAMPLES
    assert record["tunnel_bytes"] > GRADIENTS
    assert record["unexplained_bytes"] == 0
    assert record["watched_bytes"] > GRADIENTS
    assert record["drives"]["csd0"]["copies"] == 0
    proof.demand()


def test_given_away(rig: Rig) -> None:
    """A job that sends some of the samples through the tunnel is found out, though no byte crossed port 0."""
    drives = {"csd0": rig.drive}
    with watched(drives):
        before = Snapshot.take(drives)
        assert rig.work(40_000)[:40_000] == rig.samples[12345:52345]
        after = Snapshot.take(drives)
    proof = Proof.between(before, after, GRADIENTS)
    assert proof.verdict == "broken"
    assert proof.record["port0_bytes"] == 0
    assert proof.record["watch_hits"] > 100
    with pytest.raises(PrivacyBroken, match="seen in the tunnel") as caught:
        proof.demand()
    assert caught.value.drive == "csd0"
    assert str(rig.samples[12345:12350]) not in repr(proof.record)


def test_the_host_tries(rig: Rig) -> None:
    """Commands of the host for the private namespace are refused, and told of; no byte is theirs."""
    drives = {"csd0": rig.drive}
    with watched(drives):
        before = Snapshot.take(drives)
        with pytest.raises(InvalidNamespace):
            rig.drive.namespace(rig.nsid)
        rig.drive.passthrough("io", 2, rig.nsid, length=4096, check=False)
        after = Snapshot.take(drives)
    proof = Proof.between(before, after)
    assert proof.verdict == "kept"
    assert proof.record["drives"]["csd0"]["namespaces"][str(rig.nsid)]["port0_refused"] == 1


def test_not_watched(rig: Rig) -> None:
    """Without the watch the port's counters alone are told, and that this is not all."""
    drives = {"csd0": rig.drive}
    before = Snapshot.take(drives)
    rig.work(100)
    proof = Proof.between(before, Snapshot.take(drives), GRADIENTS)
    assert proof.verdict == "incomplete"
    assert any("not watched" in why for why in proof.record["why"])
    proof.demand()
