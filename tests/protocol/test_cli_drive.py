"""The command line on a real drive, as a newcomer uses it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emucsd.cli.command import DIFFERENT, FAILED, OK, USAGE
from emucsd.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def folders() -> Iterator[None]:
    """Runtime and store folders of this module's own; whatever is still up in the end is killed."""
    patch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory(prefix="emucsd-test-") as folder:
        patch.setenv("EMUCSD_RUNTIME", f"{folder}/run")
        patch.setenv("EMUCSD_STORE", f"{folder}/store")
        yield
        main(["down", "--all", "--force"])
        patch.undo()


@pytest.fixture(scope="module")
def drive(folders: None) -> str:
    """A small drive that is up, started by `emucsd up`."""
    assert main(["up", "d0", "--drive-only", "--profile", "null", "--size", "64MiB", "--json"]) == OK
    return "d0"


def told(capsys: Capture, *argv: str, code: int = OK) -> dict[str, Any]:
    """What a command's --json says."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_up_says_where_it_is(drive: str, capsys: Capture) -> None:
    """`status` lists the drive, with sockets that exist and a process that runs."""
    listed = told(capsys, "status")["drives"][drive]
    assert listed["running"]
    os.kill(listed["pid"], 0)
    assert [Path(port["socket"]).is_socket() for port in listed["ports"]] == [True, True]
    assert main(["status", drive]) == OK
    assert "nobody is attached" in capsys.readouterr().out


def test_up_twice(drive: str, capsys: Capture) -> None:
    """A name that is in use is refused, and the drive that has it goes on."""
    assert main(["up", drive, "--drive-only"]) == FAILED
    assert "runs already" in capsys.readouterr().err
    assert told(capsys, "status")["drives"][drive]["running"]


def test_up_with_nonsense(capsys: Capture) -> None:
    """A profile that does not exist is one error line that names it, and leaves no drive behind."""
    assert main(["up", "d9", "--drive-only", "--profile", "no-such-profile"]) == FAILED
    error = capsys.readouterr().err
    assert "no-such-profile" in error
    assert "Traceback" not in error
    assert "d9" not in told(capsys, "status")["drives"]


def test_load(drive: str, capsys: Capture) -> None:
    """`io read` and `io write` report rates and latencies of the commands that they ran."""
    for what in ("write", "read"):
        found = told(capsys, "io", what, drive, "--count", "2000", "--qd", "8")
        assert found["commands"] == 2000
        assert found["iops"] > 0
        assert 0 < found["latency_us"]["p50"] <= found["latency_us"]["p99"]


def test_block_that_does_not_fit(drive: str, capsys: Capture) -> None:
    """A block size that is no number of LBAs is refused, with one that would do."""
    assert main(["io", "read", drive, "--block", "1000"]) == FAILED
    assert "hint: use --block" in capsys.readouterr().err


def test_verify(drive: str, capsys: Capture) -> None:
    """`io verify` finds what it wrote, and what something else wrote in between."""
    assert told(capsys, "io", "verify", drive, "--blocks", "3000")["wrong"] == 0
    told(capsys, "io", "write", drive, "--pattern", "sequential", "--count", "1")
    found = told(capsys, "io", "verify", drive, "--blocks", "3000", "--read-only", code=DIFFERENT)
    assert found["first_wrong"][0] == 0
    assert main(["io", "verify", drive, "--read-only", "--blocks", "10"]) == DIFFERENT
    assert "differ" in capsys.readouterr().out


def test_tables(drive: str, capsys: Capture, tmp_path: Path) -> None:
    """A table of one's own rows is stored, listed, looked up with every sum checked, and dropped."""
    rows = np.arange(600, dtype=np.float32).reshape(100, 6)
    np.save(tmp_path / "rows.npy", rows)
    create = ("table", "create", drive, "t", "--rows-from", str(tmp_path / "rows.npy"))
    assert main(create) == FAILED
    assert "--format" in capsys.readouterr().err
    assert told(capsys, *create, "--format")["table"]["rows"] == 100
    assert [table["name"] for table in told(capsys, "table", "list", drive)["tables"]] == ["t"]
    assert told(capsys, "table", "show", drive, "t", "--first", "2")["rows"] == rows[:2].tolist()
    found = told(capsys, "lookup", drive, "t", "--ids", "3,1,4")
    assert found["sums"] == [rows[[3, 1, 4]].sum(axis=0).tolist()]
    assert told(capsys, "lookup", drive, "t", "--bags", "50", "--length", "9", "--skew", "amazon")["wrong"] == []
    assert main(["io", "write", drive]) == FAILED
    assert "overwrite: t" in capsys.readouterr().err
    assert main(["table", "drop", drive, "t"]) == OK
    assert told(capsys, "table", "list", drive)["tables"] == []


def test_an_id_that_is_no_row(drive: str, capsys: Capture) -> None:
    """An id out of range is named with its position and the table's size."""
    told(capsys, "table", "create", drive, "small", "--rows", "10", "--dim", "4")
    assert main(["lookup", drive, "small", "--ids", "1,10"]) == FAILED
    assert "indices[1] = 10" in capsys.readouterr().err
    told(capsys, "table", "drop", drive, "small")


def test_power_cut(capsys: Capture) -> None:
    """`down --force` is kill -9; after `up` everything that was flushed is there. `--delete` leaves nothing."""
    up = ("up", "d1", "--drive-only", "--profile", "null", "--size", "16MiB")
    store = Path(told(capsys, *up)["store"])
    assert told(capsys, "io", "verify", "d1", "--blocks", "1000", "--force")["wrong"] == 0
    assert told(capsys, "down", "d1", "--force")["drives"]["d1"]["how"] == "killed"
    again = told(capsys, "up", "d1", "--drive-only")["status"]["drive"]  # profile and size are what it was made with
    assert again["recovered"]["clean"] is False
    assert again["capacity_bytes"] == 16 << 20
    assert told(capsys, "io", "verify", "d1", "--blocks", "1000", "--read-only")["wrong"] == 0
    assert told(capsys, "down", "d1", "--delete")["drives"]["d1"]["how"] == "stopped"
    assert not store.exists()
    assert main(["io", "read", "d1"]) == FAILED
    assert "emucsd: error:" in capsys.readouterr().err


def test_kinds_of_tables(drive: str, capsys: Capture) -> None:
    """Row types, generated tables, owners and modes are taken and told, and lookups in them checked."""
    create = ("table", "create", drive)
    told(capsys, *create, "bytes", "--rows", "500", "--dim", "20", "--dtype", "int8", "--mode", "644")
    told(capsys, *create, "made", "--rows", "100k", "--dim", "16", "--generated", "--seed", "5")
    listed = {table["name"]: table for table in told(capsys, "table", "list", drive)["tables"]}
    assert (listed["bytes"]["dtype"], listed["bytes"]["row_bytes"], listed["bytes"]["mode"]) == ("int8", 32, "644")
    assert (listed["made"]["seed"], listed["made"]["owner"], listed["made"]["mode"]) == (5, os.geteuid(), "600")
    assert main(["table", "list", drive]) == OK
    out = capsys.readouterr().out
    assert "int8" in out
    assert "644" in out
    for name in listed:
        assert told(capsys, "lookup", drive, name, "--bags", "20")["wrong"] == []
        told(capsys, "table", "drop", drive, name)
    assert main([*create, "wrong", "--generated", "--dtype", "int8"]) == FAILED
    with pytest.raises(SystemExit, match=str(USAGE)):
        main([*create, "wrong", "--mode", "9"])
