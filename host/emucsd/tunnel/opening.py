"""From the name of a drive to its port."""

from __future__ import annotations

from pathlib import Path

from emucsd.tunnel.port import TunnelPort
from emucsd_wire import paths


def open_port(where: str | Path, number: int) -> TunnelPort:
    """Attach to a drive: ``where`` is its name, its runtime folder, or a node of Linux's driver (``/dev/nvme0``).

    :raises EmucsdError: it is not there, or busy
    """
    path = Path(where)
    if path.parts[:2] == ("/", "dev"):
        from emucsd.tunnel.linux import LinuxPort  # each way without the other's modules: a guest starts slowly

        return LinuxPort(path, number)
    from emucsd.tunnel.direct import DirectPort

    if not isinstance(where, Path) and "/" not in where and not path.is_dir():
        path = paths.runtime_folder(where)
    return DirectPort.open(path, number)
