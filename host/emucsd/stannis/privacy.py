"""The proof that private samples stayed where they are: the drives' own counters, before a run and after it.

    with watched(drives):
        before = Snapshot.take(drives)
        ...                                            # the run
        after = Snapshot.take(drives, copies=True)
    proof = Proof.between(before, after, gradient_bytes={"csd0": sent})
    record["privacy"] = proof.record                   # kept with the run, whatever it says
    proof.demand()                                     # raises PrivacyBroken

A drive counts by namespace what crosses each of its ports, and may look in its tunnel for what its private namespaces
hold. docs/privacy.md says what that proves and what it can't. Nothing private is in a record: ids of namespaces and
counts. Standard library alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from emucsd.control import Control
from emucsd.errors import EmucsdError
from emucsd.stannis.errors import PrivacyBroken

Verdict = Literal["kept", "incomplete", "broken"]

HEADER_BYTES = 63  # a frame's at most: 20 IPv4, 32 TCP with time stamps, 4 its length, 7 padding
CONTROL_BYTES = 1 << 20  # what an engine tells its coordinator, where nobody has counted
WATCH_SECONDS = 600.0  # learning reads all that is private, and all that is not
_UNWATCHED_SLACK = 1 << 20  # a drive's counters are read one after the other while it works
_FRAME_EXTRA = 11  # bytes of a frame that are no packet's: length and padding, at most

_BYTES = ("bytes_read", "bytes_written", "bytes_compared", "bytes_failed")
_ROWS = ("lookup_rows", "updated_rows")


class HasControl(Protocol):
    """A drive that is open here, or one of a testbed."""

    @property
    def control(self) -> Control: ...


Reach = Control | Path | str | HasControl
"""How a drive is reached: it itself, its control API, or its runtime folder."""


def _control(drive: Reach) -> Control:
    if isinstance(drive, str | Path):
        return Control(Path(drive))
    return drive if isinstance(drive, Control) else drive.control


def _watch(control: Control, timeout: float, **words: bool) -> dict[str, Any]:
    return Control(control.path.parent, timeout).call("tunnel_watch", **words)


@contextlib.contextmanager
def watched(drives: Mapping[str, Reach], timeout: float = WATCH_SECONDS) -> Iterator[dict[str, Any]]:
    """Let the drives learn what their private namespaces hold, and look for it in their tunnels meanwhile.

    :yields: each drive's figures: fingerprints, memory, seconds
    :raises ControlError: a drive of a release that can't
    :raises DriveNotFound: nobody listens
    """
    told: dict[str, Any] = {}
    try:
        for name, drive in drives.items():
            told[name] = _watch(_control(drive), timeout, on=True)
        yield told
    finally:
        for name in told:
            with contextlib.suppress(EmucsdError):  # it was killed meanwhile: then it watches nothing anyway
                _control(drives[name]).call("tunnel_watch", on=False)


@dataclass(frozen=True)
class Counters:
    """One drive's counters at one time.

    :ivar pid: of its process: counters start at 0 with it
    :ivar private: namespaces that do not exist for the host: id -> UUID
    :ivar known: and those that do
    :ivar ports: of each port, what crossed it by namespace id
    :ivar tunnel: the relay's, with the watch's
    :ivar copies: private fingerprints found where the host may read, or None: nobody looked
    """

    pid: int
    private: dict[str, str]
    known: dict[str, str]
    ports: tuple[dict[str, dict[str, int]], ...]
    tunnel: dict[str, Any]
    copies: int | None


@dataclass(frozen=True)
class Snapshot:
    """What the drives had counted at one time.

    :ivar time: seconds of the epoch
    :ivar drives: by name; a drive that did not answer is in ``missing`` instead, with the reason
    """

    time: float
    drives: dict[str, Counters]
    missing: dict[str, str]

    @classmethod
    def take(cls, drives: Mapping[str, Reach], *, copies: bool = False, timeout: float = WATCH_SECONDS) -> Self:
        """Ask the drives.

        :param copies: also have them look for private content in all that the host may read, which takes its time
        """
        found, missing = {}, {}
        for name, drive in drives.items():
            try:
                found[name] = _counters(_control(drive), timeout if copies else 0.0)
            except EmucsdError as problem:
                missing[name] = f"{type(problem).__name__}: {problem}"
        return cls(time.time(), found, missing)


def _counters(control: Control, search: float) -> Counters:
    """:param search: seconds that looking for copies may take; 0: don't"""
    found = _watch(control, search, check=True)["copies"] if search else None
    status = control.status()
    stats = control.stats()
    spaces = status["drive"]["namespaces"]
    return Counters(
        pid=int(status["pid"]),
        private={str(space["nsid"]): space["uuid"] for space in spaces if space["private"]},
        known={str(space["nsid"]): space["uuid"] for space in spaces if not space["private"]},
        ports=tuple(port["namespaces"] for port in stats["ports"]),
        tunnel=stats["tunnel"],
        copies=found,
    )


class Proof:
    """What two snapshots say of the time between them.

    :ivar verdict: ``kept``; ``broken``: private bytes left; ``incomplete``: none that was seen, but not all was seen
    :ivar record: all of it, as JSON values; see docs/privacy.md
    """

    def __init__(self, record: dict[str, Any], leaks: list[tuple[str, int, str]]) -> None:
        self.record, self._leaks = record, leaks

    @property
    def verdict(self) -> Verdict:
        found: Verdict = self.record["verdict"]
        return found

    def demand(self) -> None:
        """:raises PrivacyBroken: private bytes have left a drive; says how many, by which way"""
        if self._leaks:
            drive, count, _ = self._leaks[0]
            reasons = "; ".join(f"drive {name}: {why}" for name, _, why in self._leaks)
            raise PrivacyBroken(
                f"private data have left their drive: {reasons}; what was trained must be taken for public, and "
                "docs/privacy.md says what to look for",
                drive,
                count,
            )

    @classmethod
    def between(
        cls,
        before: Snapshot,
        after: Snapshot,
        gradient_bytes: int | Mapping[str, int] = 0,
        *,
        control_bytes: int | Mapping[str, int] = CONTROL_BYTES,
        private: Mapping[str, Collection[int]] | None = None,
    ) -> Proof:
        """Compare two snapshots of the same drives.

        :param gradient_bytes: that each drive's engine sent into the tunnel for all-reduces, by its own account: once a
            step 4 bytes a parameter (``group.allreduce``), and the state where it handed that round
        :param control_bytes: and for all else, as those who got it have counted, or what is allowed for it
        :param private: namespaces by drive that the run takes for private: each must be, before and after
        """
        drives, leaks, gaps = {}, [], []
        for name in sorted({*before.drives, *before.missing}):
            first, last = before.drives.get(name), after.drives.get(name)
            if first is None or last is None:
                problem = (before if first is None else after).missing.get(name, "it was not asked")
                gaps.append(f"drive {name} {'before' if first is None else 'after'} the run: {problem}")
                continue
            one = _Comparison(first, last, (private or {}).get(name, ()))
            drives[name] = one.record(_of(gradient_bytes, name), _of(control_bytes, name))
            leaks += [(name, count, why) for count, why in one.leaks]
            gaps += [f"drive {name}: {why}" for why in one.gaps]
        verdict: Verdict = "broken" if leaks else "incomplete" if gaps else "kept"
        why = [f"drive {name}: {reason}" for name, _, reason in leaks] + gaps
        return cls({"verdict": verdict, "why": why, "from": before.time, "to": after.time, **_sums(drives),
                    "drives": drives}, leaks)  # fmt: skip


def _of(count: int | Mapping[str, int], name: str) -> int:
    return count if isinstance(count, int) else count.get(name, 0)


_TOTALS = (
    *("port0_bytes", "port0_rows", "port1_bytes", "tunnel_bytes", "gradient_bytes", "unexplained_bytes"),
    *("watched_bytes", "watch_hits"),
)


def _sums(drives: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    counted = {name: sum(drive[name] for drive in drives.values()) for name in _TOTALS}
    return {"private_namespaces": sum(len(drive["namespaces"]) for drive in drives.values()), **counted}


class _Comparison:
    """One drive, before and after.

    :ivar leaks: (bytes or pieces, why): private data that left
    :ivar gaps: why it can't be said that none did
    """

    def __init__(self, before: Counters, after: Counters, expected: Collection[int]) -> None:
        self.leaks: list[tuple[int, str]] = []
        self.gaps: list[str] = []
        self._before, self._after = before, after
        self._restarted = before.pid != after.pid
        if self._restarted:
            self.gaps.append("it was started anew meanwhile; what it had counted until then is not known")
        for nsid in sorted({*map(str, expected)} - before.private.keys(), key=int):
            self.leaks.append((0, f"namespace {nsid} was not private when the run began"))
        for nsid, uuid in before.private.items():
            if uuid in after.known.values():
                self.leaks.append((0, f"namespace {nsid} is not private any more"))
            elif after.private.get(nsid) != uuid:
                self.gaps.append(f"namespace {nsid} was deleted")

    def record(self, gradients: int, control: int) -> dict[str, Any]:
        """The drive's part of the record; fills ``leaks`` and ``gaps``."""
        spaces = {nsid: self._space(nsid) for nsid in sorted(self._before.private, key=int)}
        tunnel = self._tunnel(gradients, control)
        return {
            "namespaces": spaces,
            **{
                name: sum(space[name] for space in spaces.values())
                for name in ("port0_bytes", "port0_rows", "port1_bytes")
            },
            **tunnel,
            **self._watch(tunnel),
        }

    def _grown(self, before: Mapping[str, int], after: Mapping[str, int], names: Collection[str]) -> int:
        start = 0 if self._restarted else sum(before.get(name, 0) for name in names)
        return sum(after.get(name, 0) for name in names) - start

    def _space(self, nsid: str) -> dict[str, Any]:
        (host0, engine0), (host1, engine1) = (
            [port.get(nsid, {}) for port in counters.ports[:2]] for counters in (self._before, self._after)
        )
        crossed, rows = self._grown(host0, host1, _BYTES), self._grown(host0, host1, _ROWS)
        if crossed or rows:
            self.leaks.append((crossed, f"{crossed} bytes and {rows} rows of namespace {nsid} crossed port 0"))
        return {
            "uuid": self._before.private[nsid],
            "port0_bytes": crossed,
            "port0_rows": rows,
            "port0_refused": self._grown(host0, host1, ("failed",)),
            "port1_bytes": self._grown(engine0, engine1, _BYTES),
            "port1_rows": self._grown(engine0, engine1, _ROWS),
        }

    def _tunnel(self, gradients: int, control: int) -> dict[str, int]:
        first, last = self._before.tunnel["to_host"], self._after.tunnel["to_host"]
        sent, frames = self._grown(first, last, ("bytes",)), self._grown(first, last, ("frames",))
        allowed = HEADER_BYTES * frames + control
        return {
            "tunnel_bytes": sent,
            "tunnel_frames": frames,
            "gradient_bytes": gradients,
            "allowance_bytes": allowed,
            "unexplained_bytes": max(sent - gradients - allowed, 0),
        }

    def _watch(self, tunnel: Mapping[str, int]) -> dict[str, Any]:
        first, last = self._before.tunnel["watch"], self._after.tunnel["watch"]
        hits = sum(self._grown(first[way], last[way], ("hits",)) for way in ("to_host", "to_isp"))
        seen = self._grown(first["to_host"], last["to_host"], ("watched_bytes",))
        if hits:
            self.leaks.append((hits, f"{hits} pieces of private content were seen in the tunnel"))
        copies = self._after.copies
        if copies:
            self.leaks.append((copies, f"{copies} pieces of private content lie where the host may read"))
        if self._before.private:
            self._look_for_gaps(tunnel, seen)
        return {
            "watched": bool(first["on"] and last["on"]),
            "watched_bytes": seen,
            "watch_hits": hits,
            "fingerprints": int(last["fingerprints"]),
            "sample_every": int(last.get("sample_every", 0)),
            "public_fingerprints": int(last["public"]),
            "copies": copies,
        }

    def _look_for_gaps(self, tunnel: Mapping[str, int], seen: int) -> None:
        first, last = self._before.tunnel["watch"], self._after.tunnel["watch"]
        if not (first["on"] and last["on"]):
            self.gaps.append("its tunnel was not watched; turn the watch on before the run (privacy.watched)")
            return
        unknown = sorted(map(int, self._before.private.keys() - {str(nsid) for nsid in first["namespaces"]}))
        if unknown:
            self.gaps.append(f"the watch has not learnt what namespaces {unknown} hold; refresh it")
        looked_for, public = int(first["fingerprints"]), int(first["public"])
        if looked_for <= public:
            self.gaps.append(
                f"the watch knows {looked_for} fingerprints that are private, and {public} that also lie where the "
                "host may read; trim or overwrite there what was copied from"
            )
        least = tunnel["tunnel_bytes"] - _FRAME_EXTRA * tunnel["tunnel_frames"] - _UNWATCHED_SLACK
        if seen < least:
            self.gaps.append(f"the watch saw {seen} of {tunnel['tunnel_bytes']} bytes in the tunnel")
