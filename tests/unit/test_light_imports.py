"""What loads without the big packages: in a guest there is Python, perhaps NumPy, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not to be imported here")

sys.meta_path.insert(0, Block())
for name in {modules!r}:
    importlib.import_module(name)
"""
COMPILED = ("numba", "llvmlite", "rich", "msgspec", "torch", "paramiko", "pyroute2", "fuse")
NO_NUMPY = ("numpy", *COMPILED)

WIRE = ("layout", "vendor", "nvme", "identify", "logs", "features", "registers", "paths", "vfio_user")
LINUX = ("ioctl", "uring", "nodes", "blocks")
NUMPY = (
    "drive",
    "table",
    "tablefile",
    "volume",
    "traces",
    "placement",
    "sharding",
    "admin",
    "namespace",
    "linux.attachment",
    "linux.queue",
    "rm.session",
    "rm.model",
    "rm.calls",
    "stannis.spec",
    "stannis.plan.cache",
    "stannis.plan.retune",
    "stannis.plan.tuner",
    "stannis.data.loader",
    "stannis.data.inspect",
    "stannis.data.put",
    "stannis.data.take",
)


def load(modules: list[str], blocked: tuple[str, ...]) -> None:
    """Import modules in a Python of their own, where ``blocked`` packages can't be imported."""
    path = os.pathsep.join(str(ROOT / part) for part in ("firmware", "host"))
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=set(blocked), modules=modules)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", WIRE)
def test_wire_needs_no_numpy(name: str) -> None:
    """Declarations of bytes on the wire load without NumPy."""
    load([f"emucsd_wire.{name}"], NO_NUMPY)


@pytest.mark.parametrize("name", LINUX)
def test_linux_interfaces_need_no_numpy(name: str) -> None:
    """Passthrough to Linux's nvme driver is Python's standard library alone."""
    load([f"emucsd.linux.{name}"], NO_NUMPY)


@pytest.mark.parametrize("name", NUMPY)
def test_the_library_through_linux_needs_numpy_alone(name: str) -> None:
    """Drives, namespaces and tables load without Numba and the command line's packages: guests have none of them."""
    load([f"emucsd.{name}"], COMPILED)
