"""The NVM subsystem: what both controllers share. Namespaces, health counters, saved features, sanitize, power."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from emucsd_firmware import nvram
from emucsd_firmware.errors import StoreGeometry
from emucsd_firmware.nvme.namespaces import Namespace, Namespaces
from emucsd_firmware.nvme.sanitize import Sanitizer
from emucsd_firmware.nvram import Nvram, SavedFeature, Totals
from emucsd_wire.logs import Event

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller
    from emucsd_firmware.nvme.hardware import DriveBorder
    from emucsd_firmware.profile import Profile

MODEL = "emucsd computational storage drive"
FIRMWARE = "0.1"
CONTROLLERS = (1, 2)
KEEP_NS = 600_000_000_000

_COUNTED = ("reads", "writes", "blocks_read", "blocks_written", "busy_ns", "media_errors")


class Subsystem:
    """Shared by the controllers of a drive.

    :param folder: of the store; ``nvram.json`` lies there
    :param now: wall time in ns for what the control plane times: keep alive, sanitize, power-on hours
    :param identity: of a drive that is made now; else it is chosen at random
    :raises StoreError: the file can't be used
    """

    def __init__(
        self,
        folder: Path,
        drive: DriveBorder,
        *,
        now: Callable[[], int] = time.monotonic_ns,
        identity: uuid.UUID | None = None,
    ) -> None:
        self.drive = drive
        self.now = now
        self.controllers: list[Controller] = []
        self.feature_values: dict[tuple[int, int], int] = {}  # (feature, index) -> current value, subsystem scope
        self.namespace_gone: list[Callable[[int, int | None], None]] = []  # (nsid, port or None for all)
        self._folder = folder
        loaded = nvram.load(folder)
        self.nvram = loaded or _fresh(drive.profile, identity or uuid.uuid4())
        profile = drive.profile
        self.namespaces = Namespaces(self.nvram.namespaces, profile.capacity_bytes, profile.geometry.page_bytes)
        if self.namespaces.unallocated < 0:
            raise StoreGeometry(
                f"{folder / nvram.NAME} has namespaces over {-self.namespaces.unallocated} bytes more than the drive's "
                f"{profile.capacity_bytes}; open it with the capacity that it was made with"
            )
        self._started = now()
        self._powered = self.nvram.totals.powered_ns
        self._count_power_on()
        self.sanitizer = Sanitizer(self)

    @property
    def serial(self) -> str:
        """20 characters at most."""
        return self.nvram.drive.hex[:16].upper()

    @property
    def nqn(self) -> str:
        return f"nqn.2014-08.org.nvmexpress:uuid:{self.nvram.drive}"

    def add(self, controller: Controller) -> None:
        """Take a controller in, and show the data plane its namespaces."""
        self.controllers.append(controller)
        self.publish()
        self.sanitizer.apply()

    def controller(self, cntlid: int) -> Controller | None:
        return next((c for c in self.controllers if c.cntlid == cntlid), None)

    def save(self) -> None:
        """Write nvram.json. :raises StoreError: the disk does not take it"""
        nvram.save(self._folder, self.nvram)

    def checkpoint(self) -> None:
        """Add this run's counters to the drive's life: at shutdown, at power off, and now and then.

        :raises StoreError: the disk does not take it
        """
        self.nvram.totals = self.totals()
        for controller in self.controllers:
            controller.forget_counters()
            controller.collect_errors()
            self.nvram.errors[str(controller.cntlid)] = controller.errors.count
        self._powered, self._started = self.nvram.totals.powered_ns, self.now()
        self.sanitizer.note_writes()
        self.save()

    def keep(self) -> None:
        """Save the counters when the last time is long ago: a drive that is killed loses what came after."""
        if self.now() - self._started >= KEEP_NS:
            self.checkpoint()

    def close(self) -> None:
        """Power off. :raises StoreError: nvram.json can't be written"""
        self.checkpoint()

    def totals(self) -> Totals:
        """Counters over the drive's life, with this run's."""
        base = self.nvram.totals
        live = {name: sum(c.counted(name) for c in self.controllers) for name in _COUNTED}
        return Totals(
            **{name: getattr(base, name) + live[name] for name in _COUNTED},
            powered_ns=self._powered + self.now() - self._started,
            power_cycles=base.power_cycles,
            unsafe_shutdowns=base.unsafe_shutdowns,
        )

    # power: a host that enables a controller owes it a shutdown

    def host_came(self) -> None:
        """A controller was enabled."""
        if self.nvram.clean:
            self.nvram.clean = False
            self.save()

    def host_left(self) -> None:
        """A controller was shut down by its host."""
        if not any(c.in_use for c in self.controllers):
            self.nvram.clean = True
            self.checkpoint()

    def _count_power_on(self) -> None:
        totals = self.nvram.totals
        totals.power_cycles += 1
        if not self.nvram.clean:
            totals.unsafe_shutdowns += 1
            self.nvram.sanitize.erased = False  # writes since the last save are not known
        self.nvram.clean = True
        self.save()

    # namespaces

    def publish(self) -> None:
        """Show every port's data plane the namespaces as they are now."""
        with self.drive.plane.paused():
            for controller in self.controllers:
                self.namespaces.publish(controller.queues, controller.cntlid)

    def create_namespace(self, size: int, lba_shift: int, *, shared: bool) -> Namespace:
        """A new namespace, attached to nobody. :raises Refused: no room, no id"""
        namespace = self.namespaces.create(size, lba_shift, shared=shared, made=self.nvram.made + 1)
        self.nvram.made += 1
        self.save()
        return namespace

    def delete_namespace(self, namespace: Namespace) -> None:
        """Its blocks are forgotten; controllers that had it are told."""
        attached, namespace.attached = namespace.attached, []
        self.publish()
        self._gone(namespace, None)
        with self.drive.plane.paused():
            self.drive.format(self.namespaces.first_lpn(namespace), self.namespaces.pages(namespace))
        self.namespaces.delete(namespace)
        self.save()
        self._tell(namespace, attached)

    def attach(self, namespace: Namespace, controllers: list[int]) -> None:
        """Attach to controllers that do not have it yet."""
        namespace.set_attached({*namespace.attached, *controllers})
        self.save()
        self.publish()
        self._tell(namespace, controllers)

    def detach(self, namespace: Namespace, controllers: list[int]) -> None:
        """Take it from controllers that have it."""
        namespace.set_attached(set(namespace.attached) - set(controllers))
        self.save()
        self.publish()
        for cntlid in controllers:
            self._gone(namespace, cntlid - 1)
        self._tell(namespace, controllers)

    def format(self, namespace: Namespace, lba_shift: int) -> None:
        """Forget a namespace's blocks, and choose their size."""
        with self.drive.plane.paused():
            self._gone(namespace, None)
            self.drive.format(self.namespaces.first_lpn(namespace), self.namespaces.pages(namespace))
            namespace.lba_shift = lba_shift
            self.publish()
        self.save()
        self._tell(namespace, namespace.attached)

    def _gone(self, namespace: Namespace, port: int | None) -> None:
        for hook in self.namespace_gone:
            hook(namespace.nsid, port)

    def _tell(self, namespace: Namespace, controllers: list[int]) -> None:
        for controller in self.controllers:
            if controller.cntlid in controllers:
                controller.namespace_changed(namespace.nsid)

    # features

    def saved_features(self, cntlid: int) -> dict[tuple[int, int], int]:
        """(feature, index) -> value, as a controller starts with it."""
        return {(f.feature, f.index): f.value for f in self.nvram.features if f.controller == cntlid}

    def save_feature(self, cntlid: int, feature: int, index: int, value: int) -> None:
        """Remember a feature's value over resets and power cycles."""
        kept = [f for f in self.nvram.features if (f.controller, f.feature, f.index) != (cntlid, feature, index)]
        self.nvram.features[:] = [*kept, SavedFeature(cntlid, feature, index, value)]
        self.save()

    def apply_write_cache(self) -> None:
        """The cache is one for the drive: on while no controller turns it off."""
        on = all(c.features.write_cache for c in self.controllers)
        with self.drive.plane.paused():
            self.drive.set_write_cache(on)

    # events

    def report(self, event: Event) -> None:
        """Report an event on every controller."""
        for controller in self.controllers:
            controller.report(event)

    def reset(self) -> None:
        """NVM subsystem reset: every controller goes back to its initial state."""
        self.feature_values.clear()
        for controller in self.controllers:
            controller.reset(nssro=True)


def _fresh(profile: Profile, identity: uuid.UUID) -> Nvram:
    """A new drive: one namespace over all of it, shared by both controllers."""
    shift = profile.lba_bytes.bit_length() - 1
    page_bytes = profile.geometry.page_bytes  # a namespace takes whole pages; the rest of an odd capacity is nobody's
    size = profile.capacity_bytes // page_bytes * page_bytes
    first = Namespace(1, size, shift, True, list(CONTROLLERS), 1)
    return Nvram(version=nvram.VERSION, drive=identity, namespaces=[first], made=1)
