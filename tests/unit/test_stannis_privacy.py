"""What two snapshots prove: nothing may be called kept that was not seen to be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from emucsd.stannis.errors import PrivacyBroken
from emucsd.stannis.privacy import CONTROL_BYTES, HEADER_BYTES, Counters, Proof, Snapshot

Spaces = dict[str, dict[str, int]]
MIB = 1 << 20


def counters(host: Spaces | None = None, *, hits: int = 0, sent: int = 0, frames: int = 0, **changes: Any) -> Counters:
    """Of a drive whose namespace 2 is private, and watched."""
    way = {"watched_bytes": sent, "hits": hits}
    watch = {"on": True, "namespaces": [2], "fingerprints": 100, "public": 0, "sample_every": 256}
    tunnel = {"to_host": {"bytes": sent, "frames": frames},
              "watch": {**watch, "to_host": way, "to_isp": {"watched_bytes": 0, "hits": 0}}}  # fmt: skip
    plain = Counters(7, {"2": "u2"}, {"1": "u1"}, (host or {}, {"2": {"bytes_read": 10 * sent}}), tunnel, None)
    return dataclasses.replace(plain, **changes)


def snapshot(**drives: Counters) -> Snapshot:
    return Snapshot(0.0, drives, {})


def proof(before: Counters, after: Counters, **words: Any) -> Proof:
    return Proof.between(snapshot(a=before), snapshot(a=after), **words)


@pytest.mark.parametrize(
    "name", ["bytes_read", "bytes_written", "bytes_compared", "bytes_failed", "lookup_rows", "updated_rows"]
)
def test_anything_that_crossed_port_0(name: str) -> None:
    """One byte, or row, of a private namespace at port 0 breaks it; what crossed before the run does not."""
    put = {"2": {"bytes_written": 5 * MIB, name: 6 * MIB}}
    assert proof(counters(put), counters(put)).verdict == "kept"
    more = {"2": {**put["2"], name: 6 * MIB + 1}}
    found = proof(counters(put), counters(more))
    assert found.verdict == "broken"
    with pytest.raises(PrivacyBroken, match="namespace 2 crossed port 0"):
        found.demand()


def test_public_namespaces_may_cross() -> None:
    """Reading what is shared breaks nothing, and tries at what is private are told."""
    after = counters({"1": {"bytes_read": 9 * MIB}, "2": {"failed": 3}})
    found = proof(counters(), after)
    assert found.verdict == "kept"
    assert found.record["drives"]["a"]["namespaces"]["2"]["port0_refused"] == 3


def test_hits_and_copies() -> None:
    """One hit in the tunnel, in either direction, or one copy where the host may read, breaks it."""
    there = counters()
    there.tunnel["watch"]["to_isp"]["hits"] = 1
    for after in (counters(hits=1), there, counters(copies=1)):
        found = proof(counters(), after)
        assert found.verdict == "broken"
        with pytest.raises(PrivacyBroken, match="1 pieces of private content"):
            found.demand()
    assert proof(counters(hits=5), counters(hits=5)).verdict == "kept"


def test_a_namespace_that_the_host_got() -> None:
    """A private namespace that ends known to the host breaks it; one that was deleted leaves it open."""
    given = counters(private={}, known={"1": "u1", "2": "u2"})
    assert proof(counters(), given).verdict == "broken"
    renamed = counters(private={"2": "u9"}, known={"1": "u1", "5": "u2"})
    assert proof(counters(), renamed).verdict == "broken"
    assert proof(counters(), counters(private={})).verdict == "incomplete"
    assert proof(counters(), counters(), private={"a": [2]}).verdict == "kept"
    assert proof(counters(), counters(), private={"a": [1, 2]}).verdict == "broken"


def test_what_was_not_seen() -> None:
    """A drive that was restarted, did not answer, or did not watch all the time proves nothing by that, and breaks
    nothing."""
    off = counters()
    off.tunnel["watch"]["on"] = False
    other = counters()
    other.tunnel["watch"]["namespaces"] = []
    known = counters()
    known.tunnel["watch"] |= {"fingerprints": 20, "public": 30}
    blind = counters(sent=9 * MIB, frames=300)
    blind.tunnel["watch"]["to_host"]["watched_bytes"] = MIB
    for before, after, why in (
        (counters(), counters(pid=8), "started anew"),
        (off, counters(), "not watched"),
        (counters(), off, "not watched"),
        (other, counters(), "[2]"),
        (counters(), blind, "saw"),
        (known, counters(), "30 that also lie"),
    ):
        found = proof(before, after)
        assert found.verdict == "incomplete"
        (told,) = found.record["why"]
        assert why in told
        found.demand()
    gone = Proof.between(snapshot(a=counters()), Snapshot(1.0, {}, {"a": "DriveNotFound: it was pulled"}))
    assert gone.verdict == "incomplete"
    assert gone.record["why"] == ["drive a after the run: DriveNotFound: it was pulled"]
    leak = proof(counters({"2": {"bytes_read": MIB}}), counters({"2": {"bytes_read": 1}}, pid=8))
    assert leak.verdict == "broken", "it starts at 0, so that byte crossed after the restart"


def test_what_the_tunnel_carried() -> None:
    """Bytes out of the engine less its gradients, the headers and what is allowed for control are unexplained."""
    before, after = counters(sent=MIB, frames=40), counters(sent=101 * MIB, frames=4040)
    found = proof(before, after, gradient_bytes={"a": 80 * MIB}, control_bytes=MIB)
    assert found.verdict == "kept", "shown, not judged"
    record = found.record["drives"]["a"]
    assert record["tunnel_bytes"] == 100 * MIB
    assert record["allowance_bytes"] == MIB + 4000 * HEADER_BYTES
    assert found.record["unexplained_bytes"] == 19 * MIB - 4000 * HEADER_BYTES
    assert proof(before, after, gradient_bytes=100 * MIB - CONTROL_BYTES).record["unexplained_bytes"] == 0


def test_records() -> None:
    """A record of several drives adds them up, and is JSON."""
    both = {"a": counters(sent=MIB, frames=50), "b": counters(sent=2 * MIB, frames=80)}
    found = Proof.between(snapshot(a=counters(), b=counters()), snapshot(**both))
    assert json.loads(json.dumps(found.record)) == found.record
    assert found.record["private_namespaces"] == 2
    assert found.record["tunnel_bytes"] == 3 * MIB
    assert found.record["port1_bytes"] == 30 * MIB


def test_a_drive_that_is_not_there(tmp_path: Path) -> None:
    """A snapshot tells which drives did not answer, and of the others all."""
    found = Snapshot.take({"gone": tmp_path})
    assert not found.drives
    assert "no drive answers" in found.missing["gone"]
