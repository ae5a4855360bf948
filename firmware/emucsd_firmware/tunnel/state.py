"""State of the relay: two ways, each a ring of bytes with a line of senders before it and of receivers behind it."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from emucsd_wire.layout import I64, State
from emucsd_wire.tunnel import MAX_BATCH, MAX_MTU, TunnelWay, frame_bytes
from emucsd_wire.words import pointer

RING_BYTES = 1 << 20  # each way, a power of two
SPARE = frame_bytes(MAX_MTU)
NEVER = 1 << 62
HEARD_NS = 5_000_000_000  # an end that asked for frames within this time is there
HOLD_NS = 10_000_000  # a frame that is to be overtaken is not held back for longer


class Line(State):
    """Waiters, first come first. They are linked through ``Tunnel.following``."""

    first: I64  # waiter + 1; 0: nobody
    last: I64


class Way(State):
    """One direction. ``head`` and ``tail`` count bytes and only grow; a frame never wraps within 8 bytes."""

    data: I64
    size: I64
    head: I64
    tail: I64
    senders: Line
    receivers: Line
    heard: I64  # when the receiving end last asked for frames; -NEVER: not since its reset
    generation: I64  # resets of the receiving port
    spare: I64  # address of a frame that is held back
    spare_bytes: I64
    spare_until: I64
    frames: I64  # counters
    bytes: I64
    batches: I64
    delivered: I64
    unheard: I64  # frames for an end that is not there
    lost: I64  # frames, on purpose
    reordered: I64
    duplicated: I64
    refused: I64
    waited: I64
    expired: I64
    idle: I64  # receives that ended without a frame
    watched_bytes: I64  # of packets that the watch looked at
    hits: I64
    hit_bytes: I64  # of the packets with hits in them


class Watch(State):
    """Fingerprints of content that is to be noticed (``tunnel.watch``)."""

    table: I64  # address of int64[mask + 1]; 0: nothing is watched
    mask: I64
    clear: I64  # the highest bits: windows whose hash has none of them count
    gear: I64  # address of int64[256]
    room: I64  # places of the table that may be taken
    taken: I64
    common: I64  # fingerprints that came up so often that they say nothing
    public: I64  # and that were found where everybody may read
    plain: I64  # windows that have none: they are of too few different bytes
    left_out: I64  # for which there was no room
    window: I64  # address of ``tunnel.watch.WORKING`` bytes to work in


class Tunnel(State):
    """The relay of one drive. ``to_isp`` carries what port 0 sends."""

    open: I64
    mtu: I64
    wake: I64  # when ``nvme.tunnels.expire`` is to be called next
    found: I64  # of the last check of a batch: its frames, or where it errs
    following: I64  # int64[waiters]: the next waiter + 1
    deadlines: I64  # int64[waiters]
    scratch: I64  # MAX_BATCH bytes: a batch on its way through the faults
    faults: I64  # 1 when any of the next three is not 0
    loss: I64  # frames per million
    reorder: I64
    duplicate: I64
    random: I64
    watch: Watch
    to_isp: Way
    to_host: Way


way_at = pointer(Way)
tunnel_at = pointer(Tunnel)
watch_at = pointer(Watch)

COUNTERS = ("frames", "bytes", "batches", "delivered", "unheard", "lost", "reordered", "duplicated", "refused",
            "waited", "expired", "idle")  # fmt: skip
WATCHED = ("watched_bytes", "hits", "hit_bytes")


class TunnelMemory:
    """Owns the memory behind a Tunnel record; untouched it takes none.

    :param waiters: numbers of waiters are below this
    """

    def __init__(self, waiters: int) -> None:
        size = 2 * RING_BYTES + MAX_BATCH + 2 * SPARE
        self._bytes = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        self._links = np.zeros((2, waiters), np.int64)
        self.record: Any = None

    def fill(self, record: Any) -> None:
        """Write addresses into the Tunnel record of a drive's state."""
        self.record = record
        at = int(self._bytes.ctypes.data)
        for number, name in enumerate(("to_isp", "to_host")):
            way = record[name]
            way["data"], way["size"] = at + number * RING_BYTES, RING_BYTES
            way["spare"] = at + 2 * RING_BYTES + MAX_BATCH + number * SPARE
            way["heard"] = -NEVER
            way["spare_until"] = NEVER
        record["scratch"] = at + 2 * RING_BYTES
        record["following"], record["deadlines"] = (row.ctypes.data for row in self._links)
        record["wake"] = NEVER

    def set_faults(self, loss: int, reorder: int, duplicate: int, seed: int) -> None:
        """Frames per million that are lost, overtaken, doubled, drawn from ``seed``; with the data plane held."""
        record = self.record
        record["loss"], record["reorder"], record["duplicate"] = loss, reorder, duplicate
        record["random"] = seed
        record["faults"] = int(loss + reorder + duplicate > 0)

    def snapshot(self) -> dict[str, Any]:
        """Counters of both ways, and the faults: plain values."""
        record = self.record
        result: dict[str, Any] = {"open": bool(record["open"]), "mtu": int(record["mtu"])}
        for name in ("to_isp", "to_host"):
            way = record[name]
            result[name] = {counter: int(way[counter]) for counter in COUNTERS}
            result[name]["queued_bytes"] = int(way["tail"]) - int(way["head"])
        result["faults"] = {name: int(record[name]) for name in ("loss", "reorder", "duplicate")}
        return result


def way_counters(way: Any) -> TunnelWay:
    """A way's counters as TUNNEL_STATUS tells them."""
    return TunnelWay(
        frames=int(way["frames"]),
        bytes=int(way["bytes"]),
        batches=int(way["batches"]),
        delivered=int(way["delivered"]),
        dropped=int(way["unheard"]) + int(way["lost"]),
        refused=int(way["refused"]),
        waited=int(way["waited"]),
        expired=int(way["expired"]),
    )
