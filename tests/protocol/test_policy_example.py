"""The worked example of docs/policies.md, run as a user would: another process, another policy file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "firmware/emucsd_firmware/examples/windowed_gc.py"

LOAD = """
import json, sys
from pathlib import Path
from emucsd_firmware import build
build.use_cache()
import numpy as np
from tests.protocol.io_host import IoHost, open_drive
from tests.unit.nvme_host import MIB

with open_drive(Path(sys.argv[1]), "null", capacity_bytes=16 * MIB, **{"geometry.channels": 1, "geometry.dies": 1,
        "geometry.pages": 16}) as drive:
    host, chance = IoHost(drive), np.random.default_rng(3)
    newest = {}
    for turn in range(9000):
        hot = chance.random() < 0.8
        page = int(chance.integers(0, 400) if hot else chance.integers(400, 4096))
        newest[page] = turn
        assert host.put(8 * page, turn.to_bytes(4, "little") * 1024) == 0
    for page, turn in newest.items():
        assert host.get(8 * page, 8) == turn.to_bytes(4, "little") * 1024
    drive.store.audit()
    figures = drive.store.snapshot()
print(json.dumps({name: figures[name] for name in ("gc_moves", "flash_erases", "host_pages")}))
"""


def run(folder: Path, policy: Path | None) -> dict[str, int]:
    names = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "EMUCSD_FIRMWARE")}
    if policy is None:
        names["NUMBA_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]
    else:
        names["EMUCSD_FIRMWARE"] = str(policy)
    names["PYTHONPATH"] = ":".join(str(ROOT / part) for part in ("", "firmware", "host", "femu"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, folder], env=names, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def test_the_example_changes_what_is_collected_and_loses_nothing(tmp_path: Path) -> None:
    """A user's policy file is what decides: other blocks are collected than by default, and every page survives."""
    default, windowed = run(tmp_path / "default", None), run(tmp_path / "windowed", EXAMPLE)
    assert default["host_pages"] == windowed["host_pages"]
    assert default["gc_moves"] > 0
    assert windowed["gc_moves"] > 0
    assert default["gc_moves"] != windowed["gc_moves"]
    assert len(EXAMPLE.read_text().splitlines()) < 40
