"""A session inside the host machine: a real kernel's nvme driver, tables as fragmented files, the same bits come out.

What is done there is in ``rm_worker``; here the direct client does it on a drive of its own, and both are compared.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emucsd import Drive
from emucsd.baselines.recssd import RecSsdTables
from emucsd.rm import Session
from emucsd.testbed import Testbed
from tests.system.rm_worker import model_of, sparse_of, weights_of

pytestmark = pytest.mark.vm

WORKER = Path(__file__).with_name("rm_worker.py")
TABLES, ROWS, DIM, SAMPLES = 3, 4000, 16, 40
SECONDS = 400.0


def made() -> dict[str, Any]:
    """Rows, layers and inputs: carried into the machine, so that another NumPy draws no other numbers."""
    rng = np.random.default_rng(11)
    scale = (10.0 ** rng.integers(-3, 2, (TABLES, ROWS, 1))).astype(np.float32)
    case: dict[str, Any] = {"rows": rng.standard_normal((TABLES, ROWS, DIM), np.float32) * scale}
    model = model_of(ROWS, DIM, TABLES)
    for number, layer in enumerate(model.random_weights(3).layers):
        case[f"weight{number}"], case[f"bias{number}"] = layer.weight, layer.bias
    case["dense"] = rng.standard_normal((SAMPLES, model.dense), np.float32)
    for number in range(TABLES):
        lengths = rng.integers(0, 17, SAMPLES)
        case[f"ids{number}"] = rng.integers(0, ROWS, int(lengths.sum()))
        case[f"offsets{number}"] = np.cumsum(lengths) - lengths
    return case


@pytest.fixture(scope="module")
def case() -> dict[str, Any]:
    return made()


@pytest.fixture(scope="module")
def direct(case: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The direct client's outputs."""
    model = model_of(ROWS, DIM, TABLES)
    with Drive.start("null", size=64 << 20) as drive:
        tables = model.create_tables(drive, tables=list(case["rows"]))
        with Session.open(drive, model, tables=tables, weights=weights_of(model, case)) as session:
            return session.infer(case["dense"], sparse_of(case))


@pytest.fixture(scope="module")
def found(testbed: Testbed, case: dict[str, Any]) -> dict[str, Any]:
    """What the worker said."""
    testbed.drive().control.recssd(enabled=True)
    data = io.BytesIO()
    np.savez(data, **case)
    testbed.host.put(WORKER, "/root/rm_worker.py")
    testbed.host.put(data.getvalue(), "/root/rm_case.npz")
    words = ["env", "OPENBLAS_NUM_THREADS=1", "python3", "/root/rm_worker.py", "/dev/nvme0", "/root/rm_case.npz"]
    done = testbed.host.run(words, timeout=SECONDS, check=True)
    said: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return said


def test_the_same_bits(found: dict[str, Any], direct: np.ndarray[Any, Any]) -> None:
    """Outputs over Linux's driver and fragmented files equal the direct client's, bit for bit, every time."""
    assert found["outputs"] == direct.tobytes().hex()
    assert found["stream"]
    model, case = model_of(ROWS, DIM, TABLES), made()
    wanted = model.reference(weights_of(model, case), list(case["rows"]), case["dense"], sparse_of(case))
    np.testing.assert_allclose(direct, wanted, rtol=1e-5)


def test_the_files_were_fragmented(found: dict[str, Any]) -> None:
    """Each table's file lies in several pieces: its rows are found all the same."""
    assert min(found["extents"]) >= 4, found["extents"]


def test_faults_in_the_machine(found: dict[str, Any]) -> None:
    """A bad id is named, a session closed in flight says so, and sessions after them give the same bits."""
    assert found["bad"] == [0, 5, ROWS]
    assert found["closed"]
    assert found["after_bad"] == found["again"] == found["outputs"]


def test_recssd_over_linux(found: dict[str, Any], case: dict[str, Any]) -> None:
    """RecSSD's commands go through Linux's driver as well: the direct client's bits, and NumPy's within rounding."""
    shapes = [rows.shape for rows in case["rows"]]
    with Drive.start("null", size=64 << 20) as drive:
        device = RecSsdTables(drive, shapes)
        for number, rows in enumerate(case["rows"]):
            device.load(number, rows)
        device.keep_rows(0, [1, 2, 3])
        sums = device.lookup(sparse_of(case))
    assert found["recssd"] == [table.tobytes().hex() for table in sums]
    for table, rows, (ids, starts) in zip(sums, case["rows"], sparse_of(case), strict=True):
        exact = [rows[part].astype(np.float64).sum(0) for part in np.split(ids, starts[1:])]
        assert np.allclose(table, exact, rtol=1e-5, atol=1e-4 * np.abs(rows).max())


def test_nothing_compiled_is_loaded(found: dict[str, Any]) -> None:
    """Sessions need the standard library and NumPy there, nothing else."""
    assert found["loaded"] == []
