"""The tunnel's watch: what a private namespace holds is noticed when it passes, and nothing else is."""

from __future__ import annotations

import io
import random
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from emucsd_firmware import watch as firmware_watch
from emucsd_firmware.tunnel.watch import REPEATS, SAMPLE_BITS, WINDOW, gear
from emucsd_wire.nvme import Admin, Io
from emucsd_wire.tunnel import MAX_BATCH
from tests.unit.nvme_host import MIB
from tests.unit.tunnel_rig import MTU, End, batch, packet, two_ends

HEAD = 20
TCP = 1448  # payload of an ordinary packet


class Rig(NamedTuple):
    """Two ends, a namespace of the engine's alone, and one of both."""

    host: End
    isp: End
    private: int
    public: int

    def store(self, nsid: int, data: bytes, lba: int = 0) -> None:
        """The engine writes."""
        for at in range(0, len(data), MIB // 2):
            piece = data[at : at + MIB // 2]
            padded = piece.ljust(-(-len(piece) // 512) * 512, b"\0")
            done = self.isp.io(Io.WRITE, nsid, lba + at // 512, len(padded) // 512, padded)
            assert done.status == 0

    def watch(self, on: bool | None = None, **words: bool) -> dict[str, Any]:
        return self.isp.drive.set_tunnel_watch(on, **words)

    def carry(self, data: bytes, payload: int = MTU - HEAD, *, back: bool = False) -> None:
        """Send ``data`` to the host in packets with so much of it, or from there; the host takes them."""
        source, sink = (self.host, self.isp) if back else (self.isp, self.host)
        pieces = [carried(data[at : at + payload]) for at in range(0, len(data), payload)]
        while pieces:
            some = [pieces.pop(0)]
            while pieces and len(batch(*some, pieces[0])) <= MAX_BATCH // 2:
                some.append(pieces.pop(0))
            sink.receive(MAX_BATCH, place=1)
            source.send(batch(*some))
            assert [status for _, status, _ in source.settle()] == [0]
            sink.settle()

    def hits(self, way: str = "to_host") -> int:
        found: int = self.isp.drive.stats()["tunnel"]["watch"][way]["hits"]
        return found


def carried(data: bytes) -> bytes:
    """A packet around ``data``."""
    head = packet(HEAD)
    return head[:2] + (HEAD + len(data)).to_bytes(2, "big") + head[4:] + data


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with two_ends(tmp_path, capacity_bytes=64 * MIB) as (host, isp):
        host.ok(Admin.NAMESPACE_MANAGEMENT, 1, cdw10=1)
        public = host.make_namespace(24 * MIB, 1, 2)
        yield Rig(host, isp, isp.make_namespace(24 * MIB, 2), public)


def noise(count: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def photographs(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of what looks like something, each another."""
    image = pytest.importorskip("PIL.Image")
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        small = rng.integers(0, 256, (24, 24, 3), np.uint8)
        picture = image.fromarray(small).resize((192, 192), image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def fingerprints(data: bytes) -> list[int]:
    """Of the windows in ``data``, by the definition."""
    constants, found = [value % (1 << 64) for value in gear()], []
    for end in range(WINDOW, len(data) + 1):
        rolled = 0
        for byte in data[end - WINDOW : end]:
            rolled = ((rolled << 1) + constants[byte]) % (1 << 64)
        if rolled >> (64 - SAMPLE_BITS) == 0:
            found.append(rolled)
    return found


def test_every_fingerprint_that_passes_is_a_hit(rig: Rig) -> None:
    """Hits are exactly the fingerprints of the private bytes that packets hold whole, by the definition in Python."""
    data = noise(4096)
    rig.store(rig.private, data)
    assert rig.watch(True)["fingerprints"] == len(set(fingerprints(data)))
    for start, count in ((0, 4096), (1000, 2500), (77, 64), (5, 63)):
        before = rig.hits()
        rig.carry(data[start : start + count])
        assert rig.hits() - before == len(fingerprints(data[start : start + count]))


@pytest.mark.parametrize("payload", [TCP, MTU - HEAD])
def test_a_private_photograph(rig: Rig, payload: int) -> None:
    """A private JPEG that leaves, in packets of any size, is counted, with its direction; what is not there is not."""
    files = photographs(40)
    tar = b"".join(file.ljust(-(-len(file) // 512) * 512, b"\0") for file in files)
    rig.store(rig.private, tar)
    told = rig.watch(True)
    assert told["namespaces"] == [rig.private]
    assert told["bytes"] >= len(tar)
    assert len(tar) / 256 / 2 < told["fingerprints"] < len(tar) / 256 * 2
    rig.carry(b"".join(photographs(40, seed=9)), payload)
    assert rig.hits() == 0
    rig.carry(files[7], payload)
    assert rig.hits() > len(files[7]) / 256 / 3
    assert rig.hits("to_isp") == 0
    rig.carry(files[7], payload, back=True)
    assert rig.hits("to_isp") == rig.hits("to_host")
    figures = rig.watch()["to_host"]
    assert len(files[7]) <= figures["watched_bytes"]
    assert 0 < figures["hit_bytes"] <= len(files[7]) + 40 * HEAD


def test_gradients_zeros_and_public_data_are_no_hits(rig: Rig) -> None:
    """64 MB of random gradients, zeros and what also lies in a shared namespace pass without a hit."""
    files = photographs(3)  # so few that their common header is in none of them too often
    rig.store(rig.private, b"".join(files) + bytes(65536) + noise(4 * MIB) + b"\xff" * 65536)
    rig.store(rig.public, photographs(1, seed=5)[0] + noise(MIB, 2))
    told = rig.watch(True)
    assert told["common"] + told["public"] > 0
    rig.carry(photographs(1, seed=5)[0])
    rig.carry(photographs(1, seed=6)[0])
    rig.carry(noise(MIB, 2) + bytes(MIB) + b"\xff" * MIB)
    rng = np.random.default_rng(3)
    for _ in range(16):
        rig.carry((rng.standard_normal(MIB) * 1e-3).astype("<f4").tobytes())
    assert rig.watch()["to_host"]["watched_bytes"] > 64_000_000
    assert rig.hits() == 0
    rig.carry(files[0])
    assert rig.hits() > 0


def test_what_archives_are_made_of(rig: Rig) -> None:
    """Headers and padding of tar archives, numbers as text and JPEG's tables are in many files, and no hits."""

    def archive(files: list[bytes]) -> bytes:
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, file in enumerate(files):
                info = tarfile.TarInfo(f"train/class{number % 3}/{number:04}.jpg")
                info.size, info.mtime = len(file), 1_600_000_000 + number % 7
                tar.addfile(info, io.BytesIO(file))
        return written.getvalue()

    text = "".join(f"{number},{number * 7 % 1000},0.{number * 37 % 1000:03}\n" for number in range(20_000)).encode()
    rig.store(rig.private, archive(photographs(60)) + text)
    told = rig.watch(True)
    assert told["plain"] > 100
    rig.carry(archive(photographs(60, seed=8)))
    rig.carry(text[4242:])
    assert rig.hits() == 0
    rig.carry(archive(photographs(60))[100_000:110_000])
    assert rig.hits() > 15


def test_off_and_refresh(rig: Rig) -> None:
    """Off is off and costs no memory; what was written since is known after a refresh, and not before."""
    rig.store(rig.private, noise(65536))
    rig.carry(noise(65536))
    told = rig.watch()
    assert not told["on"]
    assert not told["to_host"]["watched_bytes"]
    assert not rig.watch(refresh=True)["on"]
    assert rig.watch(True)["memory_bytes"] <= 1 << 20
    rig.store(rig.private, noise(65536, 2), lba=4096)
    rig.carry(noise(65536, 2))
    assert rig.hits() == 0
    assert rig.watch(refresh=True)["bytes"] == 2 * 65536
    rig.carry(noise(65536, 2))
    assert rig.hits() > 100
    before = rig.watch(False)
    assert "memory_bytes" not in before
    rig.carry(noise(65536, 2))
    assert rig.watch() == before


def test_a_copy_where_the_host_may_read(rig: Rig) -> None:
    """A check finds private content that was copied to a shared namespace after it was learnt."""
    rig.store(rig.private, noise(MIB))
    rig.store(rig.public, noise(MIB, 2))
    rig.watch(True)
    assert rig.watch(check=True)["copies"] == 0
    rig.store(rig.public, noise(MIB)[:200_000], lba=9000)
    assert 600 < rig.watch(check=True)["copies"] < 1000
    assert rig.watch(True)["public"] > 600, "once it is learnt anew, it is no secret"


def test_little_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fingerprints would not fit the table, fewer windows have one; a leak is still seen."""
    monkeypatch.setattr(firmware_watch, "MOST_PLACES", 4096)
    rig.store(rig.private, noise(4 * MIB))
    told = rig.watch(True)
    assert (told["sample_every"], told["memory_bytes"], told["left_out"]) == (2048, 32768, 0)
    rig.carry(noise(4 * MIB)[MIB : 2 * MIB])
    assert 250 < rig.hits() < 900


def test_repeated_content_tells_nothing(rig: Rig) -> None:
    """What the private set holds more than REPEATS times is left out; what it holds as often as that is not."""
    often, seldom = noise(8192, 1), noise(8192, 2)
    rig.store(rig.private, often * (REPEATS + 1) + seldom * REPEATS)
    told = rig.watch(True)
    assert told["common"] == len(set(fingerprints(often[:4096]) + fingerprints(often[4096:])))
    rig.carry(often)
    assert rig.hits() == 0
    rig.carry(seldom)
    assert rig.hits() > 10


def test_content_made_to_be_looked_up(rig: Rig) -> None:
    """Of bytes where every window counts, one in 16 bytes of the packet is looked up: the relay stays at its work."""
    data = noise(65536)
    rig.store(rig.private, data)
    rig.watch(True)
    constants = gear()
    slow = [byte for byte in range(256) if -constants[byte] % (1 << 64) >> (64 - SAMPLE_BITS) == 0]
    assert slow, "of this seed there is one; of another one, choose a longer pattern"
    run = bytes([slow[0]]) * (MTU // 2)  # is looked over beside the second half
    rig.carry(run + data[: MTU - HEAD - len(run)])
    assert rig.hits() < len(run) / 256 / 2
    rig.carry(data)
    assert rig.hits() > 150


def test_packets_that_wrap_around_the_ring(rig: Rig) -> None:
    """Wherever in the ring a packet comes to lie, also across its end, all of its windows are looked at."""
    data = noise(8900)
    rig.store(rig.private, data)
    rig.watch(True)
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    known = set().union(*map(fingerprints, pages))
    expected = sum(mark in known for mark in fingerprints(data))
    chance = random.Random(1)
    for turn in range(250):
        before = rig.hits()
        rig.carry(data)
        assert rig.hits() - before == expected, turn
        rig.carry(bytes(chance.randrange(1, 700)))


def test_pages_that_change_meanwhile(rig: Rig) -> None:
    """What is learnt while pages are written anew, and flash is used again, is private content and no other page's."""
    kept = noise(4 * MIB)
    rig.store(rig.private, kept)
    turns: list[int] = []

    def learn() -> None:
        while len(turns) < 60:
            rig.watch(True)
            turns.append(1)

    thread = threading.Thread(target=learn)
    thread.start()
    seed = 10
    while thread.is_alive() or seed < 100:
        seed += 1
        rig.store(rig.public, noise(MIB // 4, seed), lba=seed % 8 * 512)
        rig.store(rig.private, kept[: MIB // 4], lba=0)
    thread.join()
    for former in range(11, seed, 7):  # most of it is nowhere on the drive any more
        rig.carry(noise(MIB // 4, former))
    assert rig.hits() == 0
    rig.carry(kept[: MIB // 4])
    assert rig.hits() > 700
