"""Errors of the drive's firmware package.

    FirmwareError               base: catch this one to catch them all
    ├── ProfileError            the user's: a profile or an override that cannot be used
    ├── StoreError              the store folder (the drive's flash and what describes it)
    │   ├── StoreLocked         another process has it open
    │   ├── StoreTruncated      a file is shorter than the geometry says
    │   ├── StoreVersion        written by another version of the format
    │   └── StoreGeometry       made for another geometry
    ├── MemoryMapError          a transport asked for an impossible guest-memory mapping
    ├── MlpError                an MLP engine can't be made
    │   ├── GraphError          layers that do not fit one another, or are beyond the limits; weights out of range
    │   ├── BudgetExceeded      it needs more LUT, FF, BRAM or DSP than the FPGA gives
    │   └── DramExceeded        its weights need more DRAM than the drive has
    ├── PortError               a transport misused a port (region, offset, vector)
    └── PlaneError              the data plane was used out of turn, or has died

Every text carries the value at fault, the limit that it broke and the next step. A *guest's* mistake is never one of
these: it is an NVMe status or a vfio-user errno, and the drive goes on.
"""

from __future__ import annotations


class FirmwareError(Exception):
    """Base of everything that this package raises on purpose."""


class ProfileError(FirmwareError):
    """A profile file or an override is unusable: unknown key, wrong type, value outside its limit. The user's."""


class StoreError(FirmwareError):
    """The store folder cannot be used."""


class StoreLocked(StoreError):
    """Another live process holds the store."""


class StoreTruncated(StoreError):
    """A file of the store is shorter than it must be: copied badly, or the disk filled up."""


class StoreVersion(StoreError):
    """The store was written by a version whose format this one does not read."""


class StoreGeometry(StoreError):
    """The store was made for a geometry other than the one asked for."""


class MemoryMapError(FirmwareError):
    """A guest-memory mapping overlaps, wraps, is not aligned, or is not there. The transport turns it into an errno."""


class MlpError(FirmwareError):
    """No MLP engine can be made of this."""


class GraphError(MlpError):
    """Layers do not fit one another or are beyond the limits, or weights lie outside of their layer."""


class BudgetExceeded(MlpError):
    """The engine needs more LUT, FF, BRAM or DSP than the FPGA gives."""


class DramExceeded(MlpError):
    """The weights need more DRAM than the drive has for them."""


class PortError(FirmwareError):
    """A transport asked a port for a region, an offset or a vector that it does not have."""


class PlaneError(FirmwareError):
    """The data plane was used in a state that does not allow it, or has died: our bug, or the caller's order."""
