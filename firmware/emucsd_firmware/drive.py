"""A whole drive, put together: flash, FTL, lookup engine, two ports, one data plane. No socket, no VM.

with Drive.open(folder, load("rmssd", capacity_bytes=1 << 30), clock="virtual") as drive:
    drive.start()            # the data plane's thread; or drive.step() round by round
    drive.ports[0]           # what a transport serves
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from emucsd_firmware import dataplane
from emucsd_firmware.clock import REAL, VIRTUAL, ClockMemory
from emucsd_firmware.errors import FirmwareError, StoreError
from emucsd_firmware.ftl.store import Store
from emucsd_firmware.keeper import Keeper
from emucsd_firmware.lookup.state import LookupMemory
from emucsd_firmware.lookup.tables import Tables
from emucsd_firmware.memory import MAX_SEGMENTS, Segment
from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nvme.commands import SLOTS, CommandPool
from emucsd_firmware.nvme.hardware import Health
from emucsd_firmware.nvme.lookups import reset_lookups
from emucsd_firmware.nvme.namespaces import HOST_CONTROLLER
from emucsd_firmware.nvme.queues import QueueSet
from emucsd_firmware.nvme.recssd import reset_recssd
from emucsd_firmware.nvme.session_setup import SessionCommands
from emucsd_firmware.nvme.tables import register_table_commands
from emucsd_firmware.nvme.tunnel_setup import TunnelCommands
from emucsd_firmware.plane import Plane
from emucsd_firmware.port import Port
from emucsd_firmware.profile import Profile
from emucsd_firmware.recssd.state import RecSsdMemory
from emucsd_firmware.session.sessions import Sessions
from emucsd_firmware.session.state import SessionsMemory
from emucsd_firmware.state import FIRST_FTL_JOB, FIRST_RECSSD_JOB, PORTS, DriveState
from emucsd_firmware.subsystem import Subsystem
from emucsd_firmware.traffic import port_figures
from emucsd_firmware.tunnel.state import TunnelMemory
from emucsd_firmware.watch import PrivateWatch
from emucsd_wire.nvme import Status

log = logging.getLogger(__name__)

CLOCKS = {"real": REAL, "virtual": VIRTUAL}
SCRATCH_BYTES = 2 * 32768 + 4096
TEMPERATURE = 313  # kelvin: heat is not modelled, and a host must not be alarmed


class Drive:
    """One computational storage drive in this process.

    :param store: its flash, open; the drive closes it
    :param clock: "real" or "virtual"
    """

    def __init__(self, store: Store, *, clock: str = "real") -> None:
        if clock not in CLOCKS:
            raise FirmwareError(f"clock {clock!r} is none of {', '.join(CLOCKS)}")
        self.profile: Profile = store.profile
        self.store = store
        self.clock = clock
        self.state = np.zeros(1, DriveState.dtype)
        self._control = np.zeros(1, np.int64)
        self._kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._scratch = np.zeros(SCRATCH_BYTES + 8 * dataplane.BURST, np.uint8)
        self._segments = np.zeros(MAX_SEGMENTS, Segment.dtype)
        self.clock_memory = ClockMemory(CLOCKS[clock], 2 * SLOTS)
        self.commands = CommandPool()
        self.nand = NandModel(self.profile, FIRST_FTL_JOB + store.jobs)
        dies = self.profile.geometry.die_count
        self.lookup = LookupMemory(self.profile.lookup, self.profile.geometry.page_bytes, dies, SLOTS)
        self.recssd = RecSsdMemory(self.profile.recssd, self.profile.geometry.page_bytes, dies, FIRST_RECSSD_JOB)
        self.tables = Tables(self.lookup)
        self.sessions_memory = SessionsMemory()
        self.sessions = Sessions(self.sessions_memory, self.tables, self.profile)
        self.tunnel_memory = TunnelMemory(SLOTS)
        self._fill()
        self._session_commands = SessionCommands(self.sessions, self.address)
        self.tunnel = TunnelCommands(self.address, self.tunnel_memory, virtual=clock == "virtual")
        self.plane = Plane(self.address, self._control, self._kick_fd)
        self.plane.sync = store.sync
        self.queues = [QueueSet(self.state[0][f"port{n}"], n, bypass=n == 1, mode=CLOCKS[clock]) for n in range(PORTS)]
        self.subsystem = Subsystem(store.folder, self)
        self.ports = [Port(n, self, self.subsystem, self.queues[n]) for n in range(PORTS)]
        for port in self.ports:
            self._connect_lookups(port)
            self.tunnel.register(port.controller)
        self.keeper = Keeper(store)
        self.watch = PrivateWatch(self)

    @classmethod
    def open(cls, folder: Path, profile: Profile, *, clock: str = "real", durability: str = "process") -> Drive:
        """Open the drive in ``folder``, made from ``profile`` where there is none yet.

        :raises StoreError: the folder is locked, truncated, of another version or geometry
        """
        store = Store.open_or_create(folder, profile, durability=durability)
        try:
            return cls(store, clock=clock)
        except BaseException:
            store.close(clean=False)
            raise

    def _fill(self) -> None:
        root = self.state[0]
        root["control_word"], root["kick_fd"] = self._control.ctypes.data, self._kick_fd
        root["scratch"] = self._scratch.ctypes.data
        root["batch"] = self._scratch.ctypes.data + SCRATCH_BYTES
        root["transfer"]["segments"] = self._segments.ctypes.data
        self.clock_memory.fill(root["clock"])
        root["clock"]["now"] = self.clock_now()
        self.commands.fill(root["commands"])
        self.nand.fill(root["nand"])
        self.store.fill(root["ftl"], FIRST_FTL_JOB, int(root["clock"]["now"]))
        self.lookup.fill(root["lookup"])
        self.sessions_memory.fill(root["sessions"])
        self.recssd.fill(root["recssd"])
        self.tunnel_memory.fill(root["tunnel"])
        self._fill_costs(delays=True)

    def _fill_costs(self, *, delays: bool) -> None:
        costs, link, front = self.state[0]["costs"], self.profile.link, self.profile.front_end
        costs["link_bytes_per_us"] = link.bytes_per_us if delays else 0
        costs["link_delay_ns"] = link.delay_ns if delays else 0
        costs["command_ns"] = front.command_ns if delays else 0
        costs["page_ns"] = front.per_page_ns if delays else 0
        costs["free"] = int(not any(int(costs[name]) for name in costs.dtype.names if name != "free"))
        self.state[0]["instant"] = int(bool(costs["free"]) and bool(self.state[0]["nand"]["instant"]))

    def _connect_lookups(self, port: Port) -> None:
        # before the port's tables close: what still reads them must be dropped first, sessions with it
        port.controller.on_reset.append(lambda: reset_lookups(self.address, port.number))
        self._session_commands.register(port.controller)
        port.controller.on_reset.append(lambda: reset_recssd(self.address, port.number))
        register_table_commands(port.controller, self.tables)

    @property
    def address(self) -> int:
        """Address of the DriveState record: what compiled entry points take."""
        return int(self.state.ctypes.data)

    @property
    def failure(self) -> BaseException | None:
        """Why the data plane has died, None while it lives."""
        return self.plane.failure

    def start(self) -> None:
        """Compile what is not in the cache yet, then run the data plane and the keeper in threads of their own."""
        dataplane.compile_all()
        self.plane.start()
        self.keeper.start()

    def step(self, rounds: int = 1) -> int:
        """Without a thread: pending admin commands, then rounds of the data plane. :returns: how much was done"""
        work = sum(port.service() for port in self.ports)
        return work + self.plane.step(rounds)

    def close(self, *, clean: bool = True) -> None:
        """Stop; with ``clean`` everything is flushed and checkpointed first."""
        self.watch.close()
        self.plane.stop()
        self.keeper.stop()
        try:
            if clean:
                self.flush()
                self.subsystem.close()
        finally:
            for port in self.ports:
                port.close()
            self.store.close(clean=clean)
            for queues in self.queues:
                queues.close()
            os.close(self._kick_fd)

    def __enter__(self) -> Drive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(clean=kind is None)

    # ---- what the controllers ask of the drive (nvme/hardware.py) ----

    def clock_now(self) -> int:
        """The drive's time in ns."""
        return int(self.state[0]["clock"]["now"]) if self.clock == "virtual" else time.monotonic_ns()

    def health(self) -> Health:
        """Wear and spare of the flash, as SMART tells them."""
        figures = self.store.snapshot()
        endurance = self.profile.reliability.endurance
        used = round(100 * figures["wear"]["mean"] / endurance) if endurance else 0
        return Health(figures["spare_percent"], used, TEMPERATURE)

    def flush(self) -> None:
        """Bring everything that was written to flash, and with durability "machine" to the disk.

        :raises StoreError: there is no room for what the write buffer holds
        """
        with self.plane.paused():
            status = dataplane.destage(self.address)
            if status != 0:
                raise StoreError(
                    f"the write buffer can't be emptied: {Status(status).name}; free space and flush again"
                )
            if self.store.durability == "machine":
                self.store.sync()

    def checkpoint(self) -> None:
        """Write the map to the store while the data plane runs on. :raises StoreError: it can't be written"""
        self.store.checkpoint()

    def format(self, first_lpn: int, count: int) -> None:
        """Forget these logical pages; durable on return. :raises StoreError: the flash does not take it"""
        with self.plane.paused():
            status = dataplane.forget(self.address, first_lpn, count)
            if status != 0:
                raise StoreError(
                    f"{count} pages can't be dropped: {Status(status).name}; see the drive's log and SMART"
                )
            if self.store.durability == "machine":
                self.store.sync()

    def refuse_io(self, status: int) -> None:
        """Answer every I/O command with this status; 0: run them again."""
        with self.plane.paused():
            self.state[0]["refused"] = status

    def set_write_cache(self, enabled: bool) -> None:
        """Volatile write cache on or off; what it holds is flushed first."""
        with self.plane.paused():
            dataplane.write_cache(self.address, int(enabled))

    def set_delays(self, enabled: bool) -> None:
        """Whether flash, link and front end take time."""
        with self.plane.paused():
            self.nand.set_delays(enabled)
            self._fill_costs(delays=enabled)

    def set_gc_delay(self, enabled: bool) -> None:
        """Whether garbage collection takes time."""
        with self.plane.paused():
            self.state[0]["nand"]["instant_background"] = int(not enabled)

    def set_tunnel_faults(self, loss: int, reorder: int, duplicate: int, seed: int) -> None:
        """Lose, reorder and double frames of the tunnel, so many per million. :raises FirmwareError: out of range"""
        with self.plane.paused():
            self.tunnel.set_faults(loss, reorder, duplicate, seed)

    def set_tunnel_watch(self, on: bool | None, *, refresh: bool = False, check: bool = False) -> dict[str, Any]:
        """Look in the tunnel for what private namespaces hold, or do not, None as before; figures so far.

        :param refresh: learn anew what they hold, where it is on
        :param check: count what of that lies in namespaces that the host may read (``copies``)
        """
        if on is None and refresh and self.watch.snapshot()["on"]:
            on = True
        figures = self.watch.snapshot() if on is None else self.watch.turn(on)
        return self.watch.check() if check else figures

    def set_log(self, enabled: bool) -> None:
        """Log admin commands and resets, or only what is unusual."""
        logging.getLogger("emucsd_firmware").setLevel(logging.DEBUG if enabled else logging.NOTSET)

    def set_recssd(self, enabled: bool | None, *, clear: bool = False) -> dict[str, Any]:
        """Take RecSSD's commands or not, None as before; statistics so far, which start anew with ``clear``."""
        with self.plane.paused():
            if enabled is not None:
                self.state[0]["recssd"]["enabled"] = int(enabled)
            figures = self.recssd.snapshot()
            if clear:
                self.recssd.clear()
            return figures

    def reset_statistics(self) -> None:
        """Start lateness and the data plane's own counters from zero."""
        with self.plane.paused():
            self.clock_memory.lateness[:] = 0
            self.state[0]["clock"]["late_max"] = 0
            self.state[0]["rounds"] = self.state[0]["sleeps"] = 0

    # ---- what people ask ----

    def status(self) -> dict[str, Any]:
        """What the drive is: plain values."""
        geometry = self.profile.geometry
        return {
            "profile": self.profile.name,
            "capacity_bytes": self.profile.capacity_bytes,
            "raw_bytes": geometry.raw_bytes,
            "clock": self.clock,
            "durability": self.store.durability,
            "store": str(self.store.folder),
            "serial": self.subsystem.serial,
            "isp": asdict(self.profile.isp),
            "namespaces": [
                {
                    "nsid": n.nsid,
                    "bytes": n.size,
                    "lba_bytes": 1 << n.lba_shift,
                    "controllers": list(n.attached),
                    "private": not n.known_to(HOST_CONTROLLER),
                    "uuid": str(n.uuid(self.subsystem.nvram.drive)),
                }
                for n in self.subsystem.nvram.namespaces
            ],
            "recovered": {
                "clean": self.store.recovered.clean,
                "seconds": self.store.recovered.seconds,
                "replayed_pages": self.store.recovered.replayed_pages,
            },
        }

    def stats(self) -> dict[str, Any]:
        """What it has done: plain values. Read while the data plane runs on."""
        root = self.state[0]
        clock = self.clock_memory
        rows = self.tables.rows()
        return {
            "now_ns": self.clock_now(),
            "rounds": int(root["rounds"]),
            "sleeps": int(root["sleeps"]),
            "lateness_us": {
                "p50": clock.lateness_us(0.5),
                "p99": clock.lateness_us(0.99),
                "max": int(root["clock"]["late_max"]) / 1000,
                "count": int(clock.lateness.sum()),
            },
            "ports": [port_figures(queues, self.subsystem.nvram.namespaces, rows) for queues in self.queues],
            "ftl": self.store.snapshot(),
            "nand": self.nand.snapshot(),
            "lookup": self.tables.snapshot(),
            "sessions": self.sessions.snapshot(),
            "tunnel": {**self.tunnel.snapshot(), "watch": self.watch.snapshot()},
            "recssd": self.recssd.snapshot(),
        }
