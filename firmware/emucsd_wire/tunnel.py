"""TCP/IP over NVMe: IP packets inside vendor commands, relayed between the two ports by the drive.

The host (port 0) opens the tunnel with ``TUNNEL_SETUP`` and closes it again, or never opens it: then every other
command of it ends with Tunnel Closed. What one port sends the other receives.

| command        | opcode    | ports | cdw11 | cdw12 | cdw13 | data         | dw0, dw1             |
| -------------- | --------- | ----- | ----- | ----- | ----- | ------------ | -------------------- |
| TUNNEL_SETUP   | admin C5h | 0     |       |       |       | TunnelSetup  |                      |
| TUNNEL_STATUS  | admin CAh | both  | flags |       |       | TunnelStatus |                      |
| TUNNEL_SEND    | I/O 85h   | both  |       | bytes | ms    | a batch      | frames taken         |
| TUNNEL_RECEIVE | I/O 86h   | both  |       | bytes | ms    | a batch      | bytes, frames in dw1 |

A *batch* is frames, one behind the other. A frame is a u32 length, that many bytes of one IP packet, and padding (whose
value is ignored) up to a multiple of 8 bytes in all. A packet is IPv4 or IPv6, its own length field says the frame's
length, and that is not above the MTU of the setup. A batch with anything else in it is refused whole with Tunnel Batch,
its first bad frame's offset in dw0.

TUNNEL_SEND waits while the drive has no room for its batch, TUNNEL_RECEIVE until there is a frame: at most ``ms``
milliseconds by the drive's clock (0: not at all), then both succeed with 0 in dw0. On a virtual clock they wait without
an end and without taking time. Commands of a port are served in order; several may be out. ``bytes`` of a
TUNNEL_RECEIVE must have room for a frame of the MTU. Frames for a port whose end has not asked for any lately are
dropped and counted. The namespace id of both commands is not looked at.

TUNNEL_SETUP empties the tunnel and ends what waits: own commands with Abort Requested, those of port 1 with Tunnel
Closed; so port 1 reads the status again and finds the new setup. A reset of port 0 closes the tunnel. TUNNEL_STATUS
with flag JOIN, of an end that has just started, ends the commands that its predecessor may have left waiting on this
port.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from emucsd_wire.layout import U8, U16, U32, U64, Codec, Raw

TUNNEL_VERSION = 1
MIN_MTU = 576
MAX_MTU = 65535
MIN_PACKET = 20  # an IPv4 header
MAX_BATCH = 1 << 18  # bytes of one command
FRAME_HEADER = 4  # bytes in front of a packet: its length
FRAME_ALIGN = 8  # a frame is a multiple of this


class TunnelAdmin(IntEnum):
    """Admin opcodes; bits 1:0 say the data's direction."""

    TUNNEL_SETUP = 0xC5
    TUNNEL_STATUS = 0xCA


class SetupFlag(IntFlag):
    """TunnelSetup.flags."""

    OPEN = 1


class StatusFlag(IntFlag):
    """cdw11 of TUNNEL_STATUS."""

    JOIN = 1


class TunnelSetup(NamedTuple):
    """What the host says of the network. An IPv4 address is its number: 10.77.0.1 is 0a4d0001h."""

    version: U16  # 1
    flags: U16  # SetupFlag
    mtu: U32
    host_address: U32
    isp_address: U32
    prefix: U8  # bits of the network's mask
    reserved: Annotated[bytes, Raw(47)]


class TunnelWay(NamedTuple):
    """Counters of one direction, since the drive started."""

    frames: U64  # that were taken
    bytes: U64
    batches: U64
    delivered: U64  # frames
    dropped: U64  # frames without an end to receive them, or lost on purpose
    refused: U64  # batches with a bad frame
    waited: U64  # sends that found no room at once
    expired: U64  # sends that found none in time


class TunnelStatus(NamedTuple):
    """The tunnel as it is."""

    version: U16  # 1
    flags: U16  # SetupFlag
    mtu: U32
    host_address: U32
    isp_address: U32
    prefix: U8
    host_there: U8  # 1: port 0 has asked for frames lately
    isp_there: U8  # ... port 1
    reserved0: U8
    setups: U32  # TUNNEL_SETUPs since the drive started
    host_generation: U32  # resets of port 0
    isp_generation: U32  # ... port 1
    to_isp: Annotated[bytes, Raw(64)]  # TunnelWay
    to_host: Annotated[bytes, Raw(64)]  # TunnelWay
    reserved1: Annotated[bytes, Raw(96)]


TUNNEL_SETUP = Codec(TunnelSetup, 64)
TUNNEL_WAY = Codec(TunnelWay, 64)
TUNNEL_STATUS = Codec(TunnelStatus, 256)


def frame_bytes(length: int) -> int:
    """What a packet of ``length`` bytes takes in a batch."""
    return (FRAME_HEADER + length + FRAME_ALIGN - 1) // FRAME_ALIGN * FRAME_ALIGN
