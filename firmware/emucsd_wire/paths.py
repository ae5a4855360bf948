"""Where a drive's files lie: the runtime folder (sockets, pid, log), the store folder (its flash), the cache.

A runtime folder holds ``port0/cntrl`` and ``port1/cntrl`` (vfio-user sockets, named as SPDK's traddr wants them),
``control`` (the control API's socket), ``drive.json`` (pid and settings), ``lock`` and ``log``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from emucsd_wire.vfio_user import SOCKET_NAME

PORTS = 2
SOCKET_PATH_BYTES = 107  # sun_path without its NUL
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class PathError(ValueError):
    """The user's: a drive name or a folder that cannot be used."""


def check_name(name: str) -> str:
    """:raises PathError: a name that is no plain file name"""
    if NAME.fullmatch(name) is None:
        raise PathError(f"drive name {name!r}: use 1 to 64 letters, digits, '.', '_', '-', the first a letter or digit")
    return name


def runtime_root() -> Path:
    """Folder of all drives' runtime folders: $EMUCSD_RUNTIME, else $XDG_RUNTIME_DIR/emucsd, else /tmp/emucsd-UID."""
    if chosen := os.environ.get("EMUCSD_RUNTIME"):
        return Path(chosen)
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session, "emucsd")
    return Path(f"/tmp/emucsd-{os.getuid()}")


def store_root() -> Path:
    """Folder of all drives' stores: $EMUCSD_STORE, else $XDG_DATA_HOME/emucsd, else ~/.local/share/emucsd."""
    if chosen := os.environ.get("EMUCSD_STORE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share", "emucsd")


def cache_root() -> Path:
    """Folder of what can be made again: $XDG_CACHE_HOME/emucsd, else ~/.cache/emucsd."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "emucsd")


def runtime_folder(name: str) -> Path:
    """:raises PathError: a bad name"""
    return runtime_root() / check_name(name)


def store_folder(name: str) -> Path:
    """:raises PathError: a bad name"""
    return store_root() / check_name(name)


def port_folder(runtime: Path, port: int) -> Path:
    """What SPDK calls traddr."""
    return runtime / f"port{port}"


def port_socket(runtime: Path, port: int) -> Path:
    """The vfio-user socket of one port. :raises PathError: longer than a Unix socket's address can be"""
    return check_socket(port_folder(runtime, port) / SOCKET_NAME)


def control_socket(runtime: Path) -> Path:
    """The control API's socket. :raises PathError: longer than a Unix socket's address can be"""
    return check_socket(runtime / "control")


def check_socket(path: Path) -> Path:
    """:raises PathError: longer than a Unix socket's address can be"""
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_BYTES:
        raise PathError(
            f"socket path {path} has {size} bytes, the most is {SOCKET_PATH_BYTES}; choose a shorter runtime folder "
            "(EMUCSD_RUNTIME)"
        )
    return path
