"""A private namespace given back to the host, or deleted: both are the engine's to do, by port 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emucsd.errors import InvalidNamespace
from emucsd.stannis.data.errors import DataFormat
from emucsd.stannis.data.room import HOST

if TYPE_CHECKING:
    from emucsd.drive import Drive


def take(drive: Drive, nsid: int, *, delete: bool = False) -> None:
    """Attach a namespace to the host, who then has it with its data; or delete it, with its data.

    :param drive: on port 1
    :raises DataFormat: another port, or the drive's engine has no such namespace
    """
    if drive.port != 1:
        raise DataFormat(f"port {drive.port}: only port 1, the drive's own engine's, has private namespaces")
    try:
        drive.namespace(nsid)
    except InvalidNamespace as problem:
        known = ", ".join(map(str, drive.admin.active_namespaces())) or "none"
        raise DataFormat(f"namespace {nsid} is not the engine's; it has: {known}") from problem
    if delete:
        drive.admin.delete_namespace(nsid)
    elif HOST not in drive.admin.owners(nsid):
        drive.admin.attach(nsid, HOST)
