"""The tunnel's admin commands: the host opens and closes it, both ports ask for its status (``emucsd_wire.tunnel``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emucsd_firmware.errors import FirmwareError
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_firmware.nvme.tunnels import end_waiting, reset_tunnel, set_up
from emucsd_firmware.tunnel.state import HEARD_NS, TunnelMemory, way_counters
from emucsd_wire.nvme import Status
from emucsd_wire.tunnel import (
    MAX_MTU,
    MIN_MTU,
    TUNNEL_SETUP,
    TUNNEL_STATUS,
    TUNNEL_VERSION,
    TUNNEL_WAY,
    SetupFlag,
    StatusFlag,
    TunnelAdmin,
    TunnelSetup,
    TunnelStatus,
)

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller

_MILLION = 1_000_000
_NOTHING = TunnelSetup(TUNNEL_VERSION, 0, 0, 0, 0, 0, bytes(47))


class TunnelCommands:
    """A drive's one tunnel: its setup, and the commands of both controllers.

    :param address: of the drive's state
    """

    def __init__(self, address: int, memory: TunnelMemory, *, virtual: bool) -> None:
        self.memory = memory
        self.setup = _NOTHING
        self.setups = 0
        self._address = address
        self._virtual = virtual

    def register(self, controller: Controller) -> None:
        """Give a controller its commands; its resets end what waits on its port."""
        if controller.number == 0:
            controller.register_admin(TunnelAdmin.TUNNEL_SETUP, self.set_up)
        controller.register_admin(TunnelAdmin.TUNNEL_STATUS, self.status)
        controller.on_reset.append(lambda: self._reset(controller.number))

    def set_up(self, controller: Controller, request: Request) -> None:
        """TUNNEL_SETUP (C5h)."""
        setup = TUNNEL_SETUP.unpack(request.read(TUNNEL_SETUP.size))
        opened = setup.flags & SetupFlag.OPEN
        if setup.version != TUNNEL_VERSION or setup.flags & ~int(SetupFlag.OPEN):
            raise Refused(Status.INVALID_FIELD)
        if opened and (not MIN_MTU <= setup.mtu <= MAX_MTU or setup.prefix > 32):
            raise Refused(Status.INVALID_FIELD)
        with controller.drive.plane.paused():
            set_up(self._address, int(opened), setup.mtu if opened else 0)
        self.setup = setup if opened else _NOTHING
        self.setups += 1
        controller.drive.plane.kick()

    def status(self, controller: Controller, request: Request) -> None:
        """TUNNEL_STATUS (CAh)."""
        flags = request.sqe.cdw11
        if flags & ~int(StatusFlag.JOIN):
            raise Refused(Status.INVALID_FIELD, "cdw11")
        if flags & StatusFlag.JOIN:
            with controller.drive.plane.paused():
                end_waiting(self._address, controller.number, int(Status.ABORT_REQUESTED))
            controller.drive.plane.kick()
        setup, record = self.setup, self.memory.record
        request.write(
            TUNNEL_STATUS.pack(
                TunnelStatus(
                    version=TUNNEL_VERSION,
                    flags=setup.flags,
                    mtu=setup.mtu,
                    host_address=setup.host_address,
                    isp_address=setup.isp_address,
                    prefix=setup.prefix,
                    host_there=self._there(controller, record["to_host"]),
                    isp_there=self._there(controller, record["to_isp"]),
                    reserved0=0,
                    setups=self.setups & 0xFFFF_FFFF,
                    host_generation=int(record["to_host"]["generation"]),
                    isp_generation=int(record["to_isp"]["generation"]),
                    to_isp=TUNNEL_WAY.pack(way_counters(record["to_isp"])),
                    to_host=TUNNEL_WAY.pack(way_counters(record["to_host"])),
                    reserved1=bytes(96),
                )
            )
        )

    def set_faults(self, loss: int, reorder: int, duplicate: int, seed: int) -> None:
        """Frames per million; with the data plane held. :raises FirmwareError: out of range"""
        for name, value in (("loss", loss), ("reorder", reorder), ("duplicate", duplicate)):
            if not 0 <= value <= _MILLION:
                raise FirmwareError(f"{name} = {value} frames per million: use 0 to {_MILLION}")
        self.memory.set_faults(loss, reorder, duplicate, seed & 0x7FFF_FFFF_FFFF_FFFF)

    def snapshot(self) -> dict[str, Any]:
        """For ``stats``."""
        return {**self.memory.snapshot(), "setups": self.setups}

    def _there(self, controller: Controller, way: Any) -> int:
        heard = int(way["heard"])
        if int(way["receivers"]["first"]) or (self._virtual and heard >= 0):
            return 1
        return int(controller.subsystem.now() - heard < HEARD_NS)

    def _reset(self, number: int) -> None:
        reset_tunnel(self._address, number)
        if number == 0:
            self.setup = _NOTHING
