"""What benchmarks report besides their figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from emucsd.bench.environment import environment, file_system, own_cores, resident, scratch_folder
from emucsd.bench.io import KEYS, run_io_bench
from emucsd.errors import InvalidArgument


def test_environment(tmp_path: Path) -> None:
    """The environment names the machine, the software, the load, and the stores' file system, as plain JSON."""
    found = environment(tmp_path)
    wanted = {"cpu", "cores", "kernel", "python", "numba", "load_average", "store_filesystem"}
    assert wanted <= set(found)
    assert json.loads(json.dumps(found)) == found
    assert file_system(Path("/proc")) == "proc"


def test_scratch_folder_goes() -> None:
    """A benchmark's folder is gone afterwards, wherever there was room for it."""
    with scratch_folder(1) as small, scratch_folder(1 << 60) as huge:
        (small / "file").write_bytes(b"x")
        assert huge.is_dir()
        assert not str(huge).startswith("/dev/shm")
    assert not small.exists()
    assert not huge.exists()


def test_cores_are_given_back() -> None:
    """Threads are pinned for a measurement only."""
    before = os.sched_getaffinity(0)
    with own_cores(os.getpid()) as apart:
        assert not apart or len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_resident() -> None:
    """Resident memory is told whole and by kind."""
    found = resident(os.getpid())
    assert found["VmRSS"] == found["RssAnon"] + found["RssFile"] + found["RssShmem"]


def test_keys() -> None:
    """The result has exactly the keys that are promised, also where steps are left out."""
    found = run_io_bench(steps=())
    assert tuple(found) == KEYS
    assert found["read_qd32_iops"] is None
    with pytest.raises(InvalidArgument, match="dance"):
        run_io_bench(steps=["dance"])
    with pytest.raises(InvalidArgument, match="above 0 s"):
        run_io_bench(seconds=0)
