"""Identify (Base 5.1.13): golden pages, lists, and what each CNS refuses."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from emucsd_firmware.profile import load
from emucsd_wire.identify import (
    IDENTIFY_CONTROLLER,
    IDENTIFY_NAMESPACE,
    INDEPENDENT_NAMESPACE,
    NAMESPACE_DESCRIPTOR,
    NVM_CONTROLLER,
    PRIMARY_CAPABILITIES,
    Cns,
    DescriptorKind,
    Oacs,
    Vwc,
)
from emucsd_wire.nvme import NSID_ALL, Admin, Status
from tests.unit.nvme_host import DATA_AT, IDENTITY, LIST_AT, MIB, Bench, Host

DATA = Path(__file__).parents[1] / "data" / "nvme"


def golden(name: str) -> bytes:
    """A page from its fields' offsets and bytes; everything else is zero."""
    page = bytearray(4096)
    for line in (DATA / f"{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            offset, data, _ = line.split()
            page[int(offset) : int(offset) + len(data) // 2] = bytes.fromhex(data)
    return bytes(page)


def words(page: bytes, kind: str = "I") -> list[int]:
    """The list at the head of a page, up to its first zero."""
    values = struct.unpack(f"<{4096 // struct.calcsize(kind)}{kind}", page)
    return list(values[: values.index(0)])


def test_controller_page(bench: Bench) -> None:
    """CNS 01h equals the golden page, byte by byte."""
    bench.ports[0].trapped = True
    assert bench.hosts[0].enable().identify(Cns.CONTROLLER) == golden("identify_controller")


def test_namespace_page(host: Host) -> None:
    """CNS 00h of a namespace equals the golden page, byte by byte."""
    assert host.identify(Cns.NAMESPACE, 1) == golden("identify_namespace")


def test_independent_page(host: Host) -> None:
    """CNS 08h equals the golden page: ready, which Linux wants to see before it uses the namespace."""
    assert host.identify(Cns.INDEPENDENT_NAMESPACE, 1) == golden("independent_namespace")


def test_controllers_differ_in_their_id_alone(host: Host, engine: Host) -> None:
    """Both ports show one subsystem: same serial and NQN, controller ids 1 and 2."""
    first, second = (IDENTIFY_CONTROLLER.unpack(h.identify(Cns.CONTROLLER)) for h in (host, engine))
    assert (first.cntlid, second.cntlid) == (1, 2)
    assert first._replace(cntlid=2) == second


def test_subnqn_is_terminated(host: Host) -> None:
    """The NQN is a UUID one, and ends in a zero: Linux warns of any other."""
    page = IDENTIFY_CONTROLLER.unpack(host.identify(Cns.CONTROLLER))
    text, _, rest = page.subnqn.partition(b"\0")
    assert text.decode() == f"nqn.2014-08.org.nvmexpress:uuid:{IDENTITY}"
    assert len(text) < 223
    assert not any(rest)


@pytest.mark.parametrize("trapped", [False, True])
def test_doorbell_buffer_is_offered_where_it_helps(bench: Bench, trapped: bool) -> None:
    """OACS names Doorbell Buffer Config only on a port whose doorbells are trapped."""
    bench.ports[0].trapped = trapped
    page = IDENTIFY_CONTROLLER.unpack(bench.hosts[0].enable().identify(Cns.CONTROLLER))
    assert bool(page.oacs & Oacs.DOORBELL_BUFFER) == trapped


def test_write_cache_is_told_of(folder: Path) -> None:
    """VWC is present exactly where the profile has a DRAM write buffer."""
    bench = Bench(folder, load("null", **{"capacity_bytes": 64 * MIB, "buffer.pages": 64}))
    page = IDENTIFY_CONTROLLER.unpack(bench.hosts[0].enable().identify(Cns.CONTROLLER))
    assert page.vwc == Vwc.PRESENT | Vwc.FLUSH_BROADCAST
    bench.close()


@pytest.mark.parametrize("cns", [Cns.NAMESPACE, Cns.ALLOCATED_NAMESPACE, Cns.INDEPENDENT_NAMESPACE])
@pytest.mark.parametrize("nsid", [0, 33, 0xFFFF_FFFE])
def test_impossible_namespace_ids(host: Host, cns: int, nsid: int) -> None:
    """An id that no namespace can have is Invalid Namespace or Format, with Do Not Retry."""
    done = host.command(Admin.IDENTIFY, nsid, cdw10=cns)
    assert (done.status, done.dnr) == (Status.INVALID_NAMESPACE, True)


@pytest.mark.parametrize("cns", [Cns.NAMESPACE, Cns.ALLOCATED_NAMESPACE, Cns.INDEPENDENT_NAMESPACE])
def test_absent_namespace_is_zeros(host: Host, cns: int) -> None:
    """A possible id without a namespace gives a page of zeros."""
    host.poke(DATA_AT, b"\xff" * 4096)
    assert host.identify(cns, 7) == bytes(4096)


def test_common_capabilities(host: Host) -> None:
    """CNS 00h of FFFFFFFFh tells the formats before a namespace exists: nvme-cli's create-ns asks for them."""
    page = IDENTIFY_NAMESPACE.unpack(host.identify(Cns.NAMESPACE, NSID_ALL))
    assert (page.nsze, page.nlbaf, page.lbaf[:8]) == (0, 1, bytes.fromhex("0000090200000c00"))


def test_descriptors(host: Host) -> None:
    """CNS 03h lists EUI-64, NGUID, UUID and command set, the same as CNS 00h where that has them."""
    data, found, at = host.identify(Cns.NAMESPACE_DESCRIPTORS, 1), {}, 0
    while data[at]:
        head = NAMESPACE_DESCRIPTOR.unpack(data, at)
        found[head.kind] = data[at + 4 : at + 4 + head.length]
        at += 4 + head.length
    assert data[at:] == bytes(4096 - at)
    page = IDENTIFY_NAMESPACE.unpack(host.identify(Cns.NAMESPACE, 1))
    assert found[DescriptorKind.EUI64] == page.eui64
    assert found[DescriptorKind.NGUID] == page.nguid
    assert page.nguid[8:] == page.eui64
    assert uuid.UUID(bytes=found[DescriptorKind.UUID]).version == 5
    assert found[DescriptorKind.CSI] == b"\0"


@pytest.mark.parametrize(
    ("nsid", "status"), [(0, Status.INVALID_NAMESPACE), (NSID_ALL, Status.INVALID_NAMESPACE), (9, Status.INVALID_FIELD)]
)
def test_descriptors_of_nothing(host: Host, nsid: int, status: Status) -> None:
    """CNS 03h of an impossible or inactive namespace is refused."""
    assert host.refused(Admin.IDENTIFY, nsid, cdw10=Cns.NAMESPACE_DESCRIPTORS) == status


@pytest.mark.parametrize(
    "cns", [Cns.ACTIVE_NAMESPACES, Cns.ALLOCATED_NAMESPACES, Cns.CSI_ACTIVE_NAMESPACES, Cns.CSI_ALLOCATED_NAMESPACES]
)
def test_namespace_lists(host: Host, cns: int) -> None:
    """Lists hold the ids above the one asked for, and refuse to start at FFFFFFFEh."""
    assert words(host.identify(cns, 0)) == [1]
    assert words(host.identify(cns, 1)) == []
    assert words(host.identify(cns, 500)) == []
    for nsid in (NSID_ALL - 1, NSID_ALL):
        assert host.refused(Admin.IDENTIFY, nsid, cdw10=cns) == Status.INVALID_NAMESPACE


def test_controller_lists(host: Host) -> None:
    """CNS 12h and 13h list controllers from an id on, behind their count."""
    assert struct.unpack_from("<3H", host.identify(Cns.CONTROLLERS)) == (2, 1, 2)
    assert struct.unpack_from("<3H", host.identify(Cns.CONTROLLERS, cntid=2)) == (1, 2, 0)
    assert struct.unpack_from("<2H", host.identify(Cns.CONTROLLERS, cntid=3)) == (0, 0)
    assert struct.unpack_from("<3H", host.identify(Cns.NAMESPACE_CONTROLLERS, 1)) == (2, 1, 2)
    assert struct.unpack_from("<2H", host.identify(Cns.NAMESPACE_CONTROLLERS, 2)) == (0, 0)
    refused = host.refused(Admin.IDENTIFY, NSID_ALL, cdw10=Cns.NAMESPACE_CONTROLLERS)
    assert refused == Status.INVALID_FIELD


def test_command_set_structures(host: Host) -> None:
    """CNS 05h, 06h and 1Ch describe the NVM command set, and 05h and 06h refuse any other."""
    assert host.identify(Cns.CSI_NAMESPACE, 1) == bytes(4096)
    assert NVM_CONTROLLER.unpack(host.identify(Cns.CSI_CONTROLLER)).vsl == 0
    assert struct.unpack_from("<2Q", host.identify(Cns.COMMAND_SETS, cntid=0xFFFF)) == (1, 0)
    assert host.refused(Admin.IDENTIFY, cdw10=Cns.COMMAND_SETS | 9 << 16) == Status.INVALID_FIELD
    for cns in (Cns.CSI_NAMESPACE, Cns.CSI_CONTROLLER, Cns.CSI_ACTIVE_NAMESPACES, Cns.CSI_ALLOCATED_NAMESPACES):
        assert host.refused(Admin.IDENTIFY, 1, cdw10=cns, cdw11=2 << 24) == Status.INVALID_FIELD
    assert host.refused(Admin.IDENTIFY, 99, cdw10=Cns.CSI_NAMESPACE) == Status.INVALID_NAMESPACE


def test_virtualization_structures(engine: Host) -> None:
    """CNS 14h and 15h say that there is nothing to virtualize."""
    page = PRIMARY_CAPABILITIES.unpack(engine.identify(Cns.PRIMARY_CAPABILITIES))
    assert (page.cntlid, page.portid, page.crt) == (2, 1, 0)
    assert engine.identify(Cns.SECONDARY_CONTROLLERS) == bytes(4096)


@pytest.mark.parametrize("cns", [0x04, 0x09, 0x16, 0x17, 0x18, 0x1B, 0x1D, 0xFF])
def test_unknown_structures(host: Host, cns: int) -> None:
    """A CNS that is not there is Invalid Field."""
    assert host.refused(Admin.IDENTIFY, 1, cdw10=cns) == Status.INVALID_FIELD


def test_page_past_a_short_prp1(host: Host) -> None:
    """A page that PRP1 has no room for, without a PRP2, is refused before a byte of it is written."""
    host.poke(DATA_AT, b"\xee" * 8192)
    at = DATA_AT + 4096 - 1024
    done = host.command(Admin.IDENTIFY, cdw10=Cns.CONTROLLER, prp1=at)
    assert (done.status, done.dnr) == (Status.INVALID_FIELD, True)
    assert host.peek(DATA_AT, 8192) == b"\xee" * 8192


def test_page_over_two_prps(host: Host) -> None:
    """An unaligned PRP1 with a PRP2 takes the whole page, and not a byte more."""
    whole = host.identify(Cns.CONTROLLER)
    host.poke(DATA_AT, b"\xee" * 4096 * 3)
    host.ok(Admin.IDENTIFY, cdw10=Cns.CONTROLLER, prp1=DATA_AT + 1024, prp2=DATA_AT + 2 * 4096)
    assert host.peek(DATA_AT + 1024, 3072) + host.peek(DATA_AT + 8192, 1024) == whole
    assert host.peek(DATA_AT, 1024) == b"\xee" * 1024
    assert host.peek(DATA_AT + 4096, 4096) == b"\xee" * 4096
    assert host.peek(DATA_AT + 8192 + 1024, 3072) == b"\xee" * 3072


@pytest.mark.parametrize(
    ("prp1", "prp2", "status"),
    [
        (DATA_AT + 2, LIST_AT, Status.PRP_OFFSET_INVALID),
        (DATA_AT + 1024, LIST_AT + 8, Status.PRP_OFFSET_INVALID),
        (0x10, 0, Status.INVALID_FIELD),
        (0, 0, Status.DATA_TRANSFER_ERROR),
        (1 << 63, 0, Status.DATA_TRANSFER_ERROR),
        ((1 << 64) - 4096, 0, Status.DATA_TRANSFER_ERROR),
        (DATA_AT + 1024, 1 << 40, Status.DATA_TRANSFER_ERROR),
    ],
)
def test_bad_data_pointers(host: Host, prp1: int, prp2: int, status: Status) -> None:
    """Odd, missing or unmapped PRPs are refused, and nothing is written."""
    host.poke(DATA_AT, b"\xee" * 8192)
    assert host.refused(Admin.IDENTIFY, cdw10=Cns.CONTROLLER, prp1=prp1, prp2=prp2) == status
    assert host.peek(DATA_AT, 8192) == b"\xee" * 8192


def test_pages_describe_the_block_size_in_use(folder: Path) -> None:
    """With 4096-byte blocks sizes count in them, and a flash page holds one."""
    bench = Bench(folder, load("null", capacity_bytes=64 * MIB, lba_bytes=4096))
    page = IDENTIFY_NAMESPACE.unpack(bench.hosts[0].enable().identify(Cns.NAMESPACE, 1))
    assert (page.nsze, page.flbas, page.nawupf, page.npwg, page.mssrl) == (64 * MIB // 4096, 1, 0, 0, 2048)
    assert INDEPENDENT_NAMESPACE.unpack(bench.hosts[0].identify(Cns.INDEPENDENT_NAMESPACE, 1)).nstat == 1
    bench.close()
