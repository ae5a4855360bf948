"""What goes wrong with sessions, on drives by the wall clock: each fault has its typed error, and the drive serves on.

After each fault the same session, or another one where the fault took it away, gives a right answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emucsd import Drive
from emucsd.errors import ConnectionLost, DriveDied, EmucsdError, LookupRefused, NvmeError
from emucsd.rights import NoRight
from emucsd.rm import EmbeddingTable, InputError, Model, ModelError, Session, SessionClosed
from emucsd.rm.errors import BudgetExceeded, DramExceeded, IndexOutOfRangeOfTable
from emucsd.rm.shape import stack
from emucsd.table import Table, TableClosed, TableOpen
from emucsd.volume import NameUnknown

Floats = NDArray[np.float32]
Inputs = tuple[Floats, list[Any]]

ROWS, DIM, TABLES, SEED = 400, 16, 3, 5
DRAM = 1 << 20  # bytes of the drive's memory for weights, few enough to exceed


def model_of(hidden: int = 24, interaction: str = "cat") -> Model:
    tables = tuple(EmbeddingTable(ROWS, DIM, 6, "sum") for _ in range(TABLES))
    width = DIM + (TABLES * DIM if interaction == "cat" else TABLES * (TABLES + 1) // 2)
    return Model("faulty", 10, stack((10, 20, DIM)), tables, interaction, stack((width, hidden, 1), last="sigmoid"))  # type: ignore[arg-type]


def rows_of(seed: int = SEED) -> list[Floats]:
    return list(np.random.default_rng(seed).standard_normal((TABLES, ROWS, DIM), np.float32))


def batch(samples: int, seed: int = 0) -> Inputs:
    rng = np.random.default_rng((SEED, seed))
    sparse = []
    for _ in range(TABLES):
        counts = rng.integers(0, 7, samples)
        sparse.append((rng.integers(0, ROWS, counts.sum()), np.cumsum(counts) - counts))
    return rng.standard_normal((samples, 10), np.float32), sparse


def right(session: Session, seed: int = 0, samples: int = 9) -> None:
    """A good inference."""
    inputs = batch(samples, seed)
    wanted = session.model.reference(session.model.random_weights(SEED), rows_of(), *inputs)
    np.testing.assert_allclose(session.infer(*inputs), wanted, rtol=1e-5)


def open_session(drive: Drive, tables: list[Table] | list[str] | None = None, **options: Any) -> Session:
    model = model_of()
    return Session.open(drive, model, tables=tables, weights=model.random_weights(SEED), **options)


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    settings = {"mlp.dram_bytes": DRAM}
    with Drive.start("rmssd", size=64 << 20, queues=2, memory=256 << 20, settings=settings) as started:
        yield started


@pytest.fixture(scope="module")
def tables(drive: Drive) -> Iterator[list[Table]]:
    made = model_of().create_tables(drive, tables=rows_of())
    yield made
    for table in made:
        table.close()


@pytest.fixture
def session(drive: Drive, tables: list[Table]) -> Iterator[Session]:
    with open_session(drive, tables) as opened:
        yield opened


# -- inputs


@pytest.mark.parametrize("value", [ROWS, -1, (1 << 31), (1 << 40)])
def test_ids_out_of_range(session: Session, value: int) -> None:
    """An id without a row is named by table, position and value; others sent before and after it are answered."""
    dense, sparse = batch(8)
    ids = sparse[2][0].copy()
    ids[3] = value
    before = session.send(dense, sparse)
    with pytest.raises(IndexOutOfRangeOfTable) as found:  # from send where no table is that large, else from read
        session.send(dense, [*sparse[:2], (ids, sparse[2][1])]).read()
    after = session.send(dense, sparse)
    assert (found.value.table, found.value.position, found.value.value) == (2, 3, value)
    assert np.array_equal(before.read(), after.read())
    right(session)


def test_inputs_of_another_shape(session: Session) -> None:
    """Offsets that fall or pass the ids, other dtypes and widths never reach the drive."""
    dense, sparse = batch(8)
    falling = sparse[0][1].copy()
    falling[2] = falling[3] + 1
    past = sparse[0][1].copy()
    past[-1] = len(sparse[0][0]) + 1
    wrong: list[tuple[Any, Any]] = [
        (dense, [(sparse[0][0], falling), *sparse[1:]]),
        (dense, [(sparse[0][0], past), *sparse[1:]]),
        (dense, [(sparse[0][0].astype(np.float32), sparse[0][1]), *sparse[1:]]),
        (dense.astype(np.int64), sparse),
        (dense[:, :9], sparse),
        (dense[:7], sparse),
        (dense, sparse[:2]),
    ]
    accepted = session.info.accepted
    for features, ids in wrong:
        with pytest.raises(InputError):
            session.infer(features, ids)
    assert session.info.accepted == accepted
    right(session)


# -- tables


def test_table_dropped_while_open(drive: Drive) -> None:
    """A stored table that a session uses can't go from under it; when it is closed it can."""
    made = [Table.create(drive, f"dropped-{number}", rows) for number, rows in enumerate(rows_of())]
    with open_session(drive, made) as session:
        from emucsd.rm.opening import handle_of
        from emucsd_wire.vendor import VendorAdmin

        with pytest.raises(LookupRefused, match="BUSY"):
            drive.passthrough("admin", VendorAdmin.TABLE_CLOSE, cdw11=handle_of(made[1]))
        right(session)
        with pytest.raises(TableOpen, match="dropped-1"):
            Table.drop(drive, "dropped-1")
        right(session)
    for number, table in enumerate(made):
        table.close()
        Table.drop(drive, f"dropped-{number}")
    with pytest.raises(NameUnknown):
        open_session(drive, ["dropped-0", "dropped-1", "dropped-2"])
    with pytest.raises(TableClosed):
        open_session(drive, made)


def test_closed_table(drive: Drive, session: Session) -> None:
    """A session can't be opened on tables that are closed."""
    made = [Table.create(drive, f"closed-{number}", rows) for number, rows in enumerate(rows_of())]
    for table in made:
        table.close()
    with pytest.raises(TableClosed):
        open_session(drive, made)
    right(session)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights need root to try them")
def test_no_right_to_the_table(drive: Drive, tables: list[Table], session: Session) -> None:
    """A user whom a table's owner and mode do not let read it opens no session on it; one who may, does."""
    made = [Table.create(drive, f"mine-{number}", rows, mode=0o600) for number, rows in enumerate(rows_of())]
    shown = [Table.create(drive, f"shown-{number}", rows, mode=0o644) for number, rows in enumerate(rows_of())]
    for table in (*made, *shown):
        table.close()
    os.seteuid(12345)
    try:
        with pytest.raises(NoRight, match="mine-0"):
            open_session(drive, [f"mine-{number}" for number in range(TABLES)])
        with open_session(drive, [f"shown-{number}" for number in range(TABLES)]) as allowed:
            right(allowed)
    finally:
        os.seteuid(0)
    right(session)


# -- the engine's limits


def test_weights_beyond_the_memory(drive: Drive, tables: list[Table], session: Session) -> None:
    """A model whose weights the drive's memory can't hold is refused when it is opened, and nothing is kept."""
    hidden = stack((64, 2048, 2048, 1))  # 16 MiB: beyond all BRAM and this drive's memory
    large = Model("large", 10, model_of().bottom, model_of().tables, "cat", hidden)
    for _ in range(3):
        with pytest.raises(DramExceeded):
            Session.open(drive, large, tables=tables)
    right(session)


def test_budget_exceeded() -> None:
    """A model whose kernels need more than the engine's part of the FPGA is refused; lookups need no kernel."""
    with Drive.start("rmssd", size=32 << 20, settings={"mlp.share": 0.001}) as small:
        made = model_of().create_tables(small, tables=rows_of())
        with pytest.raises(BudgetExceeded, match="FPGA"):
            open_session(small, made)
        assert np.array_equal(made[0].lookup([3], [0])[0], rows_of()[0][3])
        with pytest.raises(ModelError):
            Session.open(small, model_of(), tables=made[:1])


# -- sessions


def test_closed_in_flight(drive: Drive, tables: list[Table]) -> None:
    """Closing a session drops its batches, and nobody else's."""
    other = open_session(drive, tables)
    doomed = open_session(drive, tables)
    kept = [other.send(*batch(40, n)) for n in range(3)]
    lost = [doomed.send(*batch(40, n)) for n in range(3)]
    doomed.close()
    for ticket in lost:
        with pytest.raises(SessionClosed):
            ticket.read()
    for number, ticket in enumerate(kept):
        wanted = other.model.reference(other.model.random_weights(SEED), rows_of(), *batch(40, number))
        np.testing.assert_allclose(ticket.read(), wanted, rtol=1e-5)
    right(other)
    other.close()


def test_two_sessions_from_two_threads(drive: Drive, tables: list[Table]) -> None:
    """Two sessions of different models over the same tables answer right, side by side, while blocks are read."""
    models = {kind: model_of(interaction=kind) for kind in ("cat", "dot")}
    wrong: list[str] = []

    def work(model: Model) -> None:
        try:
            with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED), depth=3) as session:
                for seed, answer in enumerate(session.stream(batch(11, n) for n in range(20))):
                    expected = model.reference(model.random_weights(SEED), rows_of(), *batch(11, seed))
                    np.testing.assert_allclose(answer, expected, rtol=1e-5)
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(model,)) for model in models.values()]
    for thread in threads:
        thread.start()
    space = drive.namespace(1)
    first = np.array(space.read(0, 8))
    while any(thread.is_alive() for thread in threads):
        assert np.array_equal(space.read(0, 8), first)
    for thread in threads:
        thread.join()
    assert wrong == []


# -- the drive


def test_reset_in_flight() -> None:
    """A controller reset with batches in flight: their tickets say so; tables and session open again."""
    with Drive.start("rmssd", size=32 << 20, clock="virtual") as drive:
        model_of().create_tables(drive, tables=rows_of())
        for _ in range(3):
            session = open_session(drive)
            tickets = [session.send(*batch(30, n)) for n in range(4)]
            drive.reset()
            for ticket in tickets:
                with pytest.raises(SessionClosed, match="reset"):
                    ticket.read()
            with open_session(drive) as again:
                right(again)


def test_killed_while_batches_run(tmp_path: Path) -> None:
    """A drive killed with -9 under load: a typed error; its store keeps the tables, and the same answers."""
    store = tmp_path / "store"
    inputs = batch(50)
    with Drive.start("rmssd", size=32 << 20, store=store) as drive:
        model_of().create_tables(drive, tables=rows_of())
        session = open_session(drive)
        first = session.infer(*inputs)
        process = drive.process
        assert process is not None
        seen = threading.Event()
        error = _until_error(lambda: session.infer(*inputs), seen)
        assert seen.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        assert isinstance(error(), ConnectionLost | DriveDied | SessionClosed | NvmeError)
        with contextlib.suppress(EmucsdError):
            session.close()
    with Drive.start("rmssd", size=32 << 20, store=store) as drive, open_session(drive) as session:
        assert np.array_equal(session.infer(*inputs), first)
        right(session)


def _until_error(act: Callable[[], object], seen: threading.Event) -> Callable[[], BaseException]:
    """Repeat it in a thread until it fails. :returns: waits for the error"""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(1 << 30):
                act()
                if number == 3:
                    seen.set()
        except BaseException as error:
            errors.append(error)
            seen.set()

    thread = threading.Thread(target=work)
    thread.start()

    def ended() -> BaseException:
        thread.join(60)
        assert errors, "nobody told the one who waits"
        return errors[0]

    return ended
