"""What Linux's driver shows of NVMe in /sys and /dev: controllers, their namespaces, and which are ours."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from emucsd.errors import DriveNotFound, InvalidArgument, NotOurDrive, NotPermitted

MODEL = "emucsd"
VENDOR_ID = 0x1D1D

_SYS = Path("/sys")
_CONTROLLER = re.compile(r"nvme(\d+)")
_NODE = re.compile(r"(?:/dev/)?(nvme\d+|nvme\d+n\d+(?:p\d+)?|ng\d+n\d+)")
# nvme0n1; nvme0c0n1: a path to nvme0n1 through controller 0, which has no node of its own
_NAMESPACE = re.compile(r"nvme(\d+)(?:c\d+)?n(\d+)")


class NamespaceNode(NamedTuple):
    """A namespace as Linux has it.

    :ivar nsid: the drive's number for it; the names' last number may be another
    :ivar character: ``/dev/ng0n1``: passthrough, by ioctl and io_uring
    :ivar block: ``/dev/nvme0n1``, or None where Linux makes no block device of it
    """

    nsid: int
    character: Path
    block: Path | None


class ControllerNode(NamedTuple):
    """A controller as Linux has it; text as the controller identifies itself, without padding."""

    name: str
    node: Path
    model: str
    serial: str
    cntlid: int
    address: str  # of the PCI function
    vendor: int | None
    state: str  # live, resetting, connecting, deleting, dead ...

    @property
    def ours(self) -> bool:
        """Whether it is a drive of this project."""
        return self.model.startswith(MODEL)


def controllers(root: Path = _SYS) -> list[ControllerNode]:
    """Every NVMe controller that Linux has, by number. :param root: where sysfs is"""
    folder = root / "class/nvme"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    numbered = sorted((int(found[1]), found[0]) for name in names if (found := _CONTROLLER.fullmatch(name)))
    return [controller(name, root) for _, name in numbered]


def ours(root: Path = _SYS) -> list[ControllerNode]:
    """Controllers of this project's drives."""
    return [found for found in controllers(root) if found.ours]


def controller(name: str, root: Path = _SYS) -> ControllerNode:
    """One controller, by the name of its node. :raises DriveNotFound: Linux has none of this name"""
    folder = root / "class/nvme" / name
    if not folder.is_dir():
        known = ", ".join(sorted(entry.name for entry in folder.parent.iterdir())) if folder.parent.is_dir() else ""
        raise DriveNotFound(
            f"Linux has no NVMe controller {name}; it has: {known or 'none (is the nvme module loaded?)'}"
        )
    vendor = _text(folder / "device/vendor")
    return ControllerNode(
        name,
        Path("/dev") / name,
        _text(folder / "model"),
        _text(folder / "serial"),
        int(_text(folder / "cntlid") or 0),
        _text(folder / "address"),
        int(vendor, 16) if vendor else None,
        _text(folder / "state"),
    )


def namespaces(name: str, root: Path = _SYS) -> list[NamespaceNode]:
    """The namespaces that Linux has found on controller ``name``, by nsid.

    With native multipath (the default for drives with two ports) a namespace's nodes hang under the subsystem and the
    controller holds a path; the names tell which belong together.
    """
    folder = root / "class/nvme" / name
    found: dict[int, NamespaceNode] = {}
    for entry in sorted(os.listdir(folder)) if folder.is_dir() else ():
        match = _NAMESPACE.fullmatch(entry)
        told = _text(folder / entry / "nsid") if match else ""
        if match is None or not told:
            continue
        disk = f"nvme{match[1]}n{match[2]}"
        shown = root / "class/block" / disk  # hidden: of a command set that Linux makes no block device of
        block = Path("/dev") / disk if shown.exists() and _text(shown / "hidden") != "1" else None
        found[int(told)] = NamespaceNode(int(told), Path(f"/dev/ng{match[1]}n{match[2]}"), block)
    return [found[nsid] for nsid in sorted(found)]


def controller_of(path: str | Path, root: Path = _SYS) -> str:
    """The controller's name for any node of an NVMe device: ``/dev/nvme0``, ``/dev/nvme0n1``, ``/dev/ng0n1``.

    :raises InvalidArgument: no name of such a node
    :raises DriveNotFound: Linux has no such controller or namespace
    """
    match = _NODE.fullmatch(str(path))
    if match is None:
        raise InvalidArgument(f"{path}: name a node of an NVMe device: /dev/nvme0, /dev/nvme0n1 or /dev/ng0n1")
    name = match[1]
    if _CONTROLLER.fullmatch(name):
        return controller(name, root).name
    parts = re.fullmatch(r"(?:nvme|ng)(\d+)n(\d+)(?:p\d+)?", name)
    assert parts is not None
    wanted = Path(f"/dev/ng{parts[1]}n{parts[2]}")
    for found in controllers(root):
        if any(space.character == wanted for space in namespaces(found.name, root)):
            return found.name
    raise DriveNotFound(f"Linux has no NVMe namespace {name}; ls /dev/nvme* /dev/ng* shows what there is")


def open_node(path: Path, *, write: bool = True) -> int:
    """Open a device node.

    :returns: a descriptor, the caller's to close
    :raises DriveNotFound: there is no such node
    :raises NotPermitted: its mode lets this user not open it
    :raises NotOurDrive: it is no device
    """
    try:
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    except FileNotFoundError as problem:
        raise DriveNotFound(f"{path} is not there; ls /dev/nvme* /dev/ng* shows what there is") from problem
    except PermissionError as problem:
        raise NotPermitted(f"{path}: this user may not open it; run as root, or change its mode") from problem
    except OSError as problem:
        raise DriveNotFound(f"{path} can't be opened: {problem.strerror}") from problem
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise NotOurDrive(f"{path} is no device")
    return fd


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
