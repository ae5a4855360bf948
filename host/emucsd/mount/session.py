"""A FUSE session: libfuse through fusepy, run by a loop of our own, with /dev/fuse's hot requests taken out before it.

fusepy knows libfuse 2.6's operations; ``_operations`` has those of 2.9 behind them, for fallocate. libfuse speaks
protocol 7.19: its answer to the kernel's first request is amended, where the kernel offers more, for larger requests,
direct I/O that does not wait for itself, and mappings of files that have no page cache.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emucsd.mount.errors import MountTaken, MountUnavailable, errno_of

if TYPE_CHECKING:
    from emucsd.mount.tree import Tree

log = logging.getLogger(__name__)

MOST = 1 << 20  # bytes of one request's data, where the kernel grants it
INIT = 26
_INIT_IN = struct.Struct("<40xIIIII")  # after the header: major, minor, max_readahead, flags, flags2
_INIT_OUT = struct.Struct("<IiQ IIII HHI I HHII 24x")  # linux/fuse.h, fuse_out_header and fuse_init_out
_ASYNC_READ, _BIG_WRITES, _ASYNC_DIO, _MAX_PAGES, _EXTENDED = 1 << 0, 1 << 5, 1 << 15, 1 << 22, 1 << 30
_DIRECT_IO_MMAP = 1 << 4  # of flags2: bit 36 of all flags
_NAMES = {"ftruncate": "truncate", "fgetattr": "getattr"}  # fusepy asks for those by one name
_BACKGROUND = 64  # requests that the kernel sends ahead


def load() -> Any:
    """fusepy's module. :raises MountUnavailable: it, libfuse or the device is missing"""
    if not os.path.exists("/dev/fuse"):
        raise MountUnavailable(
            "/dev/fuse is not there: load the kernel's module (modprobe fuse), or mount on another machine"
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountUnavailable("/dev/fuse may not be opened by this user; it is usually open to all (mode 0666)")
    try:
        import fuse
    except ImportError as exc:
        raise MountUnavailable("fusepy is not installed: pip install fusepy") from exc
    except OSError as exc:
        raise MountUnavailable(f"{exc}: install libfuse 2 (Debian: apt install libfuse2)") from exc
    return fuse


class _Args(ctypes.Structure):
    _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))


class _Library(NamedTuple):
    """What is called of libfuse."""

    mount: Any
    new: Any
    get_session: Any
    chan_fd: Any
    kern_chan_new: Any
    session_process: Any
    session_exited: Any
    unmount: Any
    destroy: Any


def _library(fuse: Any) -> _Library:
    """libfuse's functions, of version 2.6: plain symbols of the same names are those of 2.2."""
    libc = ctypes.CDLL(None)
    libc.dlvsym.restype, libc.dlvsym.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
    pointer, text, number, args = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(_Args)

    def function(name: str, result: Any, *arguments: Any) -> Any:
        address = libc.dlvsym(fuse._libfuse._handle, name.encode(), b"FUSE_2.6")
        prototype: Any = ctypes.CFUNCTYPE(result, *arguments)
        return prototype(address or ctypes.cast(getattr(fuse._libfuse, name), pointer).value)

    return _Library(
        mount=function("fuse_mount", pointer, text, args),
        new=function("fuse_new", pointer, pointer, args, pointer, ctypes.c_size_t, pointer),
        get_session=function("fuse_get_session", pointer, pointer),
        chan_fd=function("fuse_chan_fd", number, pointer),
        kern_chan_new=function("fuse_kern_chan_new", pointer, number),
        session_process=function("fuse_session_process", None, pointer, pointer, ctypes.c_size_t, pointer),
        session_exited=function("fuse_session_exited", number, pointer),
        unmount=function("fuse_unmount", None, text, pointer),
        destroy=function("fuse_destroy", None, pointer),
    )


def _operations(fuse: Any, tree: Tree) -> tuple[Any, Any]:
    """libfuse 2.9's table of operations, filled by fusepy's own methods, and the object that they are bound to."""
    fallocate = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, fuse.c_off_t, fuse.c_off_t, ctypes.POINTER(fuse.fuse_file_info)
    )

    class Table(fuse.fuse_operations):  # type: ignore[misc]
        _fields_ = (
            ("poll", ctypes.c_void_p),
            ("write_buf", ctypes.c_void_p),
            ("read_buf", ctypes.c_void_p),
            ("flock", ctypes.c_void_p),
            ("fallocate", fallocate),
        )

    class Bound(fuse.FUSE):  # type: ignore[misc]
        def __init__(self) -> None:
            self.operations, self.raw_fi, self.encoding, self.use_ns = tree, True, "utf-8", True

        def fallocate(self, path: bytes, mode: int, offset: int, length: int, info: Any) -> int:
            return int(self.operations("fallocate", path.decode(), mode, offset, length, info.contents) or 0)

    bound, table = Bound(), Table()
    for name, prototype, *_ in (*fuse.fuse_operations._fields_, ("fallocate", fallocate)):
        if hasattr(prototype, "argtypes") and tree.has(_NAMES.get(name, name)):
            setattr(table, name, prototype(partial(_guarded, getattr(bound, name))))
    return bound, table


def _guarded(method: Callable[..., Any], *arguments: Any) -> int:
    """Run an operation; an error becomes an errno, and one that is nobody's mistake but ours is told in the log."""
    try:
        return int(method(*arguments) or 0)
    except Exception as exc:
        number = errno_of(exc)
        if not isinstance(exc, OSError):
            log.warning("%s: %s: %s", arguments[0], type(exc).__name__, exc, exc_info=log.isEnabledFor(logging.DEBUG))
        return -number


class Session:
    """One mount. ``feed`` it the requests that the hot loop left over.

    :raises MountUnavailable: FUSE cannot be had
    :raises MountTaken: the folder cannot take a mount
    """

    def __init__(self, tree: Tree, directory: Path, options: list[str]) -> None:
        fuse = load()
        self._lib = _library(fuse)
        self.directory = directory
        self._bound, self._table = _operations(fuse, tree)
        argv = [b"emucsd", b"-o", ",".join(options).encode()]
        self._argv = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
        args = _Args(len(argv), self._argv, 0)
        self._channel = self._lib.mount(os.fsencode(directory), ctypes.byref(args))
        if not self._channel:
            raise _refused(directory, options)
        table = ctypes.addressof(self._table)
        self._fuse = self._lib.new(self._channel, ctypes.byref(args), table, ctypes.sizeof(self._table), None)
        if not self._fuse:
            self._lib.unmount(os.fsencode(directory), self._channel)
            raise MountUnavailable(f"libfuse refuses the options {options}; its own words are above")
        self._session = self._lib.get_session(self._fuse)
        self.fd: int = self._lib.chan_fd(self._channel)
        self.ready = False
        os.set_blocking(self.fd, False)

    def feed(self, address: int, length: int) -> None:
        """Let libfuse answer the request of so many bytes at an address."""
        if not self.ready and ctypes.c_uint32.from_address(address + 4).value == INIT:
            self._begin(address, length)
            return
        self._lib.session_process(self._session, address, length, self._channel)

    def _begin(self, address: int, length: int) -> None:
        """The kernel's first request: what libfuse answers goes through a pipe, and on with more than it knows."""
        source, sink = os.pipe()
        try:
            aside = self._lib.kern_chan_new(sink)
            self._lib.session_process(self._session, address, length, aside)
            answer = os.read(source, 4096)
        finally:
            os.close(source)
            os.close(sink)
        os.write(self.fd, amended(answer, ctypes.string_at(address, length)))
        self.ready = True

    @property
    def exited(self) -> bool:
        """Whether the kernel has ended the session."""
        return bool(self._lib.session_exited(self._session))

    def unmount(self) -> None:
        """Take the mount away, in use or not. Harmless when it is gone already."""
        if self._fuse:
            if _is_mounted(self.directory):
                self._lib.unmount(os.fsencode(self.directory), self._channel)
            self._lib.destroy(self._fuse)
            self._fuse = None


def amended(answer: bytes, request: bytes) -> bytes:
    """libfuse's answer to FUSE_INIT with what this kernel offers beyond it (see the module's text)."""
    if len(answer) < 40 or len(request) < 56:
        return answer
    _, _, _, offered, offered2 = _INIT_IN.unpack(request.ljust(_INIT_IN.size, b"\0")[: _INIT_IN.size])
    fields = list(_INIT_OUT.unpack(answer.ljust(_INIT_OUT.size, b"\0")))
    flags, flags2 = int(fields[6]), 0
    flags |= offered & (_ASYNC_READ | _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES)
    if offered & _EXTENDED and offered2 & _DIRECT_IO_MMAP:
        flags, flags2 = flags | _EXTENDED, _DIRECT_IO_MMAP
    if flags & _MAX_PAGES:
        fields[9], fields[11] = MOST, MOST // 4096  # max_write, max_pages
    fields[0], fields[6], fields[13] = _INIT_OUT.size, flags, flags2
    fields[7], fields[8] = _BACKGROUND, _BACKGROUND * 3 // 4
    return _INIT_OUT.pack(*fields)


def _is_mounted(directory: Path) -> bool:
    from emucsd.mount.mounts import mount_at

    return mount_at(directory) is not None


def _refused(directory: Path, options: list[str]) -> MountUnavailable | MountTaken:
    """Why libfuse would not mount, as far as can be told; its own words went to standard error."""
    if not directory.is_dir():
        return MountTaken(f"{directory} is no folder; make it first: mkdir -p {directory}")
    if os.geteuid() and not any(Path(folder, "fusermount").exists() for folder in ("/bin", "/usr/bin")):
        return MountUnavailable("without root a mount needs the program fusermount (Debian: apt install fuse3)")
    if not os.access(directory, os.W_OK):
        return MountTaken(f"{directory} is not yours to write; mount on a folder of your own")
    hint = "; --allow-other without root needs user_allow_other in /etc/fuse.conf" if "allow_other" in options else ""
    return MountUnavailable(f"{directory} could not be mounted on: libfuse's own words say why{hint}")
