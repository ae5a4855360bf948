"""Identify data structures (Base 2.1 section 5.1.13, NVM Command Set 1.1 section 4.1.5), as this drive fills them.

Every structure is a whole 4096-byte page; what this drive leaves at zero is ``reserved`` by its first byte's offset.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from emucsd_wire.layout import U8, U16, U32, U64, Codec, Raw

IDENTIFY_BYTES = 4096
LIST_NSIDS = 1024  # entries of a namespace list
LIST_CONTROLLERS = 2047  # of a controller list, behind its count


class Cns(IntEnum):
    """Controller or Namespace Structure: what Identify asks for (Base figure 310)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    CSI_NAMESPACE = 0x05
    CSI_CONTROLLER = 0x06
    CSI_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NAMESPACE_CONTROLLERS = 0x12
    CONTROLLERS = 0x13
    PRIMARY_CAPABILITIES = 0x14
    SECONDARY_CONTROLLERS = 0x15
    CSI_ALLOCATED_NAMESPACES = 0x1A
    COMMAND_SETS = 0x1C


class Csi(IntEnum):
    """Command set identifier."""

    NVM = 0


class Cmic(IntFlag):
    """Controller multi-path I/O and namespace sharing."""

    MULTI_PORT = 1
    MULTI_CONTROLLER = 2


class Oaes(IntFlag):
    """Optional asynchronous events supported; the same bits enable them in Asynchronous Event Configuration."""

    NAMESPACE_ATTRIBUTE = 1 << 8


class Ctratt(IntFlag):
    """Controller attributes."""

    HOST_ID_128 = 1 << 0


class Oacs(IntFlag):
    """Optional admin command support."""

    FORMAT = 1 << 1
    NAMESPACE_MANAGEMENT = 1 << 3
    DOORBELL_BUFFER = 1 << 8


class Lpa(IntFlag):
    """Log page attributes."""

    EFFECTS = 1 << 1
    EXTENDED_DATA = 1 << 2  # Log Page Offset, 32-bit NUMD
    SUPPORTED_PAGES = 1 << 5  # log pages 00h, 12h and 13h


class Oncs(IntFlag):
    """Optional NVM command support."""

    COMPARE = 1 << 0
    WRITE_UNCORRECTABLE = 1 << 1
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3
    SAVE_FEATURES = 1 << 4
    TIMESTAMP = 1 << 6
    VERIFY = 1 << 7
    COPY = 1 << 8


class Sanicap(IntFlag):
    """Sanitize capabilities."""

    CRYPTO_ERASE = 1 << 0
    BLOCK_ERASE = 1 << 1
    OVERWRITE = 1 << 2
    NO_DEALLOCATE_INHIBITED = 1 << 29
    NOT_MODIFIED_AFTER = 1 << 30  # NODMMAS 01b: media is not touched again once a sanitize is done


class Vwc(IntFlag):
    """Volatile write cache. A drive without one still takes Flush with NSID FFFFFFFFh (bits 2:1 = 11b)."""

    PRESENT = 1 << 0
    FLUSH_BROADCAST = 3 << 1


class Sgls(IntFlag):
    """SGL support."""

    ANY_ALIGNMENT = 1 << 0


class Nsfeat(IntFlag):
    """Namespace features."""

    ATOMIC_BOUNDARIES = 1 << 1  # NAWUN, NAWUPF and NACWU are this namespace's own
    ID_NOT_REUSED = 1 << 3
    OPTIMAL_SIZES = 1 << 4  # NPWG, NPWA, NPDG, NPDA and NOWS


class Nmic(IntFlag):
    """Namespace multi-path I/O and sharing."""

    SHARED = 1


class Dlfeat(IntFlag):
    """What deallocated blocks read as."""

    READS_ZEROS = 1
    WRITE_ZEROES_DEALLOCATES = 1 << 3


class Nstat(IntFlag):
    """Namespace status of the command-set independent structure."""

    READY = 1


class PowerState(NamedTuple):
    """Power state descriptor (Base figure 313)."""

    mp: U16 = 0  # in 0.01 W
    reserved2: U8 = 0
    flags: U8 = 0
    enlat: U32 = 0
    exlat: U32 = 0
    rrt: U8 = 0
    rrl: U8 = 0
    rwt: U8 = 0
    rwl: U8 = 0
    idlp: U16 = 0
    ips: U8 = 0
    reserved19: U8 = 0
    actp: U16 = 0
    apws: U8 = 0
    reserved23: Annotated[bytes, Raw(9)] = b""


class IdentifyController(NamedTuple):
    """CNS 01h (Base figure 312)."""

    vid: U16 = 0
    ssvid: U16 = 0
    sn: Annotated[bytes, Raw(20)] = b""
    mn: Annotated[bytes, Raw(40)] = b""
    fr: Annotated[bytes, Raw(8)] = b""
    rab: U8 = 0
    ieee: Annotated[bytes, Raw(3)] = b""
    cmic: U8 = 0
    mdts: U8 = 0
    cntlid: U16 = 0
    ver: U32 = 0
    rtd3r: U32 = 0
    rtd3e: U32 = 0
    oaes: U32 = 0
    ctratt: U32 = 0
    rrls: U16 = 0
    reserved102: Annotated[bytes, Raw(9)] = b""
    cntrltype: U8 = 0
    fguid: Annotated[bytes, Raw(16)] = b""
    crdt1: U16 = 0
    crdt2: U16 = 0
    crdt3: U16 = 0
    reserved134: Annotated[bytes, Raw(119)] = b""
    nvmsr: U8 = 0
    vwci: U8 = 0
    mec: U8 = 0
    oacs: U16 = 0
    acl: U8 = 0
    aerl: U8 = 0
    frmw: U8 = 0
    lpa: U8 = 0
    elpe: U8 = 0
    npss: U8 = 0
    avscc: U8 = 0
    apsta: U8 = 0
    wctemp: U16 = 0
    cctemp: U16 = 0
    mtfa: U16 = 0
    hmpre: U32 = 0
    hmmin: U32 = 0
    tnvmcap: U64 = 0
    tnvmcap_high: U64 = 0
    unvmcap: U64 = 0
    unvmcap_high: U64 = 0
    rpmbs: U32 = 0
    edstt: U16 = 0
    dsto: U8 = 0
    fwug: U8 = 0
    kas: U16 = 0
    hctma: U16 = 0
    mntmt: U16 = 0
    mxtmt: U16 = 0
    sanicap: U32 = 0
    reserved332: Annotated[bytes, Raw(180)] = b""
    sqes: U8 = 0
    cqes: U8 = 0
    maxcmd: U16 = 0
    nn: U32 = 0
    oncs: U16 = 0
    fuses: U16 = 0
    fna: U8 = 0
    vwc: U8 = 0
    awun: U16 = 0
    awupf: U16 = 0
    icsvscc: U8 = 0
    nwpc: U8 = 0
    acwu: U16 = 0
    cdfs: U16 = 0
    sgls: U32 = 0
    mnan: U32 = 0
    reserved544: Annotated[bytes, Raw(224)] = b""
    subnqn: Annotated[bytes, Raw(256)] = b""
    reserved1024: Annotated[bytes, Raw(1024)] = b""
    psd0: Annotated[bytes, Raw(32)] = b""
    reserved2080: Annotated[bytes, Raw(992)] = b""
    vs: Annotated[bytes, Raw(1024)] = b""


class LbaFormat(NamedTuple):
    """LBA format (NVM figure 116)."""

    ms: U16
    lbads: U8  # log2 of the block's bytes
    rp: U8  # 0 best … 3 degraded


class IdentifyNamespace(NamedTuple):
    """CNS 00h and 11h (NVM figure 114); also what Namespace Management's create reads."""

    nsze: U64 = 0
    ncap: U64 = 0
    nuse: U64 = 0
    nsfeat: U8 = 0
    nlbaf: U8 = 0  # 0-based
    flbas: U8 = 0
    mc: U8 = 0
    dpc: U8 = 0
    dps: U8 = 0
    nmic: U8 = 0
    rescap: U8 = 0
    fpi: U8 = 0
    dlfeat: U8 = 0
    nawun: U16 = 0
    nawupf: U16 = 0
    nacwu: U16 = 0
    nabsn: U16 = 0
    nabo: U16 = 0
    nabspf: U16 = 0
    noiob: U16 = 0
    nvmcap: U64 = 0
    nvmcap_high: U64 = 0
    npwg: U16 = 0
    npwa: U16 = 0
    npdg: U16 = 0
    npda: U16 = 0
    nows: U16 = 0
    mssrl: U16 = 0
    mcl: U32 = 0
    msrc: U8 = 0
    reserved81: U8 = 0
    nulbaf: U8 = 0
    reserved83: Annotated[bytes, Raw(9)] = b""
    anagrpid: U32 = 0
    reserved96: Annotated[bytes, Raw(3)] = b""
    nsattr: U8 = 0
    nvmsetid: U16 = 0
    endgid: U16 = 0
    nguid: Annotated[bytes, Raw(16)] = b""
    eui64: Annotated[bytes, Raw(8)] = b""
    lbaf: Annotated[bytes, Raw(256)] = b""  # LbaFormat[64]
    lbstm: U64 = 0
    reserved392: Annotated[bytes, Raw(3704)] = b""


class IndependentNamespace(NamedTuple):
    """CNS 08h: what holds for every command set (Base figure 319)."""

    nsfeat: U8 = 0
    nmic: U8 = 0
    rescap: U8 = 0
    fpi: U8 = 0
    anagrpid: U32 = 0
    nsattr: U8 = 0
    reserved9: U8 = 0
    nvmsetid: U16 = 0
    endgid: U16 = 0
    nstat: U8 = 0
    reserved15: Annotated[bytes, Raw(4081)] = b""


class NvmController(NamedTuple):
    """CNS 06h for the NVM command set (NVM figure 119); limits of 0 mean that there is none."""

    vsl: U8 = 0
    wzsl: U8 = 0
    wusl: U8 = 0
    dmrl: U8 = 0
    dmrsl: U32 = 0
    dmsl: U64 = 0
    reserved16: Annotated[bytes, Raw(4080)] = b""


class PrimaryCapabilities(NamedTuple):
    """CNS 14h (Base figure 327): this drive has no flexible resources."""

    cntlid: U16 = 0
    portid: U16 = 0
    crt: U8 = 0
    reserved5: Annotated[bytes, Raw(4091)] = b""


class NamespaceDescriptor(NamedTuple):
    """Head of one entry of CNS 03h; ``length`` bytes of identifier follow."""

    kind: U8
    length: U8
    reserved2: U16 = 0


class DescriptorKind(IntEnum):
    """Kinds of namespace identifiers (Base figure 315)."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    CSI = 4


POWER_STATE = Codec(PowerState, 32)
IDENTIFY_CONTROLLER = Codec(IdentifyController, IDENTIFY_BYTES)
LBA_FORMAT = Codec(LbaFormat, 4)
IDENTIFY_NAMESPACE = Codec(IdentifyNamespace, IDENTIFY_BYTES)
INDEPENDENT_NAMESPACE = Codec(IndependentNamespace, IDENTIFY_BYTES)
NVM_CONTROLLER = Codec(NvmController, IDENTIFY_BYTES)
PRIMARY_CAPABILITIES = Codec(PrimaryCapabilities, IDENTIFY_BYTES)
NAMESPACE_DESCRIPTOR = Codec(NamespaceDescriptor, 4)

CNTRLTYPE_IO = 1
NVMSR_STORAGE_DEVICE = 1
FRMW_ONE_READ_ONLY_SLOT = 0x03  # slot 1 is read-only, and the only one
