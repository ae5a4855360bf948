"""Sessions through the library, on a real drive process: answers as NumPy's, and a typed error for what is wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emucsd import Drive
from emucsd.errors import InvalidArgument, LookupRefused
from emucsd.rm import (
    EmbeddingTable,
    InputError,
    Model,
    ModelError,
    RM_create_table,
    RM_open_table,
    RM_read_outputs,
    RM_send_inputs,
    Session,
    SessionBusy,
    SessionClosed,
    SessionsFull,
    WeightsMissing,
)
from emucsd.rm.errors import IndexOutOfRangeOfTable
from emucsd.rm.shape import stack
from emucsd.table import Table, TableClosed
from emucsd.volume import NameUnknown
from emucsd_wire.rm import MAX_SESSIONS

Floats = NDArray[np.float32]

ROWS, DIM, TABLES = 300, 16, 3
SEED = 7


def model_of(interaction: str = "cat", pooling: str = "sum", bottom: bool = True) -> Model:
    """Three tables of 16; dense features of 10, or of 16 that go straight into the interaction."""
    tables = tuple(EmbeddingTable(ROWS, DIM, 4, pooling) for _ in range(TABLES))  # type: ignore[arg-type]
    dense, layers = (10, stack((10, 20, DIM))) if bottom else (DIM, ())
    width = DIM + (TABLES * DIM if interaction == "cat" else TABLES * (TABLES + 1) // 2)
    top = stack((width, 24, 3), last="sigmoid")
    return Model("made", dense, layers, tables, interaction, top)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=64 << 20, clock="virtual", memory=256 << 20) as started:
        yield started


@pytest.fixture(scope="module")
def rows() -> list[Floats]:
    """Rows whose sums depend on the order of additions."""
    rng = np.random.default_rng(SEED)
    scale = (10.0 ** rng.integers(-4, 0, (TABLES, ROWS, 1))).astype(np.float32)
    return list(rng.standard_normal((TABLES, ROWS, DIM), np.float32) * scale)


@pytest.fixture(scope="module")
def tables(drive: Drive, rows: list[Floats]) -> Iterator[list[Table]]:
    made = model_of().create_tables(drive, tables=rows)
    yield made
    for table in made:
        table.close()


@pytest.fixture
def session(drive: Drive, tables: list[Table]) -> Iterator[Session]:
    model = model_of()
    with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED)) as opened:
        yield opened


def batch(model: Model, samples: int, seed: int = 0, longest: int = 9) -> tuple[Floats, list[Any]]:
    """Dense features, and bags of any length up to ``longest``, none too."""
    rng = np.random.default_rng((SEED, seed))
    sparse = []
    for table in model.tables:
        counts = rng.integers(0, longest + 1, samples)
        sparse.append((rng.integers(0, table.rows, counts.sum()), np.cumsum(counts) - counts))
    return rng.standard_normal((samples, model.dense), np.float32), sparse


def wanted(model: Model, rows: list[Floats], inputs: tuple[Floats, list[Any]]) -> Floats:
    return model.reference(model.random_weights(SEED), rows, *inputs)


# -- answers


@pytest.mark.parametrize("bottom", [True, False])
@pytest.mark.parametrize(("interaction", "pooling"), [("cat", "sum"), ("dot", "sum"), ("cat", "mean")])
def test_infer(
    drive: Drive, tables: list[Table], rows: list[Floats], interaction: str, pooling: str, bottom: bool
) -> None:
    """Answers equal NumPy's within 1e-5: either interaction, sums or means, with bottom layers or without."""
    model = model_of(interaction, pooling, bottom)
    with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED)) as session:
        for samples in (1, 13):
            inputs = batch(model, samples)
            np.testing.assert_allclose(session.infer(*inputs), wanted(model, rows, inputs), rtol=1e-5)


@pytest.mark.parametrize("mechanism", ["decompose", "compose", "search", "pipeline"])
def test_mechanisms_change_no_answer(drive: Drive, tables: list[Table], mechanism: str) -> None:
    """Each mechanism of the engine can be left out: another time, the same answer to the last bit."""
    model = model_of()
    inputs = batch(model, 20)
    answers = []
    for options in ({}, {mechanism: False}):
        weights = model.random_weights(SEED)
        with Session.open(drive, model, tables=tables, weights=weights, **options) as session:  # type: ignore[arg-type]
            answers.append(session.infer(*inputs))
            assert (mechanism in session.info.mechanisms) is (not options)
    assert np.array_equal(answers[0].view(np.uint32), answers[1].view(np.uint32))


@pytest.mark.parametrize("grain", ["vector", "page"])
def test_sums_alone(drive: Drive, tables: list[Table], rows: list[Floats], grain: str) -> None:
    """Without layers a session returns the tables' sums side by side, bit for bit NumPy's."""
    from emucsd.rm.inputs import Sparse
    from emucsd.rm.reference import bag_sums

    model = model_of()
    _, sparse = batch(model, 17)
    with Session.open(drive, model, tables=tables, mlp=False, grain=grain) as session:  # type: ignore[arg-type]
        sums = session.infer(None, sparse)
    ids = Sparse.of(TABLES, sparse)
    expected = np.concatenate([bag_sums(n, table, ids) for n, table in enumerate(rows)], axis=1)
    assert np.array_equal(sums.view(np.uint32), expected.view(np.uint32))


def test_per_sample_weights(session: Session, rows: list[Floats]) -> None:
    """Each id may have a factor."""
    dense, sparse = batch(session.model, 6)
    weighted = [(ids, offsets, np.linspace(-1, 2, len(ids)).astype(np.float32)) for ids, offsets in sparse]
    np.testing.assert_allclose(
        session.infer(dense, weighted), wanted(session.model, rows, (dense, weighted)), rtol=1e-5, atol=1e-6
    )


def test_a_batch_larger_than_a_command(drive: Drive, tables: list[Table], rows: list[Floats]) -> None:
    """A batch of many commands gives what its samples give one by one, to the last bit."""
    model = model_of()
    with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED), depth=2) as session:
        dense, sparse = batch(model, 3 * session.max_samples + 5)
        answer = session.infer(dense, sparse)
        np.testing.assert_allclose(answer, wanted(model, rows, (dense, sparse)), rtol=1e-5)
        for sample in (0, session.max_samples, len(dense) - 1):
            alone = [
                (ids[offsets[sample] : (np.append(offsets, len(ids)))[sample + 1]], [0]) for ids, offsets in sparse
            ]
            assert np.array_equal(session.infer(dense[sample : sample + 1], alone)[0], answer[sample])


def test_small_minibatches(drive: Drive, tables: list[Table]) -> None:
    """An engine laid out for single samples cuts batches, and answers to the last bit what any other does."""
    model = model_of()
    inputs, weights = batch(model, 7), model.random_weights(SEED)
    with (
        Session.open(drive, model, tables=tables, weights=weights, depth=2) as usual,
        Session.open(drive, model, tables=tables, weights=weights, depth=2, minibatch=1) as single,
    ):
        assert (single.info.minibatch, single.max_samples) == (1, 1)
        assert np.array_equal(single.infer(*inputs), usual.infer(*inputs))


# -- many batches


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_stream(drive: Drive, tables: list[Table], rows: list[Floats], depth: int) -> None:
    """Outputs of a stream come in order, whatever the batches' sizes and however many are in flight."""
    model = model_of()
    batches = [batch(model, 1 + n % 5, n) for n in range(20)]
    with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED), depth=depth) as session:
        for answer, inputs in zip(session.stream(iter(batches)), batches, strict=True):
            np.testing.assert_allclose(answer, wanted(model, rows, inputs), rtol=1e-5)
        info = session.info
        assert (info.accepted, info.ready, info.failed, info.in_flight) == (20, 20, 0, 0)
        assert info.inferred == sum(len(dense) for dense, _ in batches)
        assert info.lookups == sum(len(ids) for _, sparse in batches for ids, _ in sparse)


def test_tickets_are_read_in_any_order(session: Session, rows: list[Floats]) -> None:
    """More batches than fit in flight may be sent before any is read, and read backwards, twice."""
    batches = [batch(session.model, 3, n) for n in range(11)]
    tickets = [session.send(*inputs) for inputs in batches]
    assert session.in_flight == session.depth
    for ticket, inputs in reversed(list(zip(tickets, batches, strict=True))):
        for _ in range(2):
            np.testing.assert_allclose(ticket.read(), wanted(session.model, rows, inputs), rtol=1e-5)


def test_registers(drive: Drive, tables: list[Table], rows: list[Floats]) -> None:
    """The session's registers say that outputs are there before they are read, and can carry a batch's parameters."""
    model = model_of()
    batches = [batch(model, 3 + n, n) for n in range(6)]
    with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED), mmio=True) as session:
        tickets = [session.send(*inputs) for inputs in batches[:2]]
        assert [ticket.ready for ticket in tickets] == [False, False]
        drive.clock.think(100_000_000)
        tickets.append(session.send(*batches[2]))
        assert [ticket.ready for ticket in tickets] == [True, True, False]
        for ticket, inputs in zip(tickets, batches, strict=False):
            np.testing.assert_allclose(ticket.read(), wanted(model, rows, inputs), rtol=1e-5)
            assert ticket.ready
        for answer, inputs in zip(session.stream(batches), batches, strict=True):
            np.testing.assert_allclose(answer, wanted(model, rows, inputs), rtol=1e-5)


def test_busy(session: Session) -> None:
    """With wait=False a batch too many is refused; reading one makes room."""
    inputs = batch(session.model, 2)
    tickets = [session.send(*inputs, wait=False) for _ in range(session.depth)]
    with pytest.raises(SessionBusy, match="4 batches are in flight"):
        session.send(*inputs, wait=False)
    session.read(tickets[0])
    session.read(session.send(*inputs, wait=False))


def test_two_sessions(drive: Drive, tables: list[Table], rows: list[Floats]) -> None:
    """Sessions over the same tables work side by side, from threads of their own."""
    results: dict[str, Floats] = {}
    models = {kind: model_of(kind) for kind in ("cat", "dot")}

    def work(kind: str) -> None:
        model = models[kind]
        with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED)) as session:
            results[kind] = np.concatenate(list(session.stream(batch(model, 4, n) for n in range(8))))

    threads = [threading.Thread(target=work, args=(kind,)) for kind in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for kind, model in models.items():
        expected = np.concatenate([wanted(model, rows, batch(model, 4, n)) for n in range(8)])
        np.testing.assert_allclose(results[kind], expected, rtol=1e-5)


def test_the_published_calls(drive: Drive, rows: list[Floats]) -> None:
    """RM_create_table, RM_open_table, RM_send_inputs and RM_read_outputs: inputs go ahead."""
    model = model_of()
    for number, table in enumerate(rows):
        RM_create_table(drive, f"published-{number}", table).close()
    opened = [RM_open_table(drive, f"published-{number}") for number in range(TABLES)]
    with Session.open(drive, model, tables=opened, weights=model.random_weights(SEED)) as session:
        batches = [batch(model, 4, n) for n in range(2)]
        sent = [RM_send_inputs(session, *inputs) for inputs in batches]
        for one, inputs in zip(sent, batches, strict=True):
            np.testing.assert_allclose(RM_read_outputs(one), wanted(model, rows, inputs), rtol=1e-5)
    for stored in opened:
        stored.close()


def test_tables_by_name(drive: Drive, tables: list[Table], rows: list[Floats]) -> None:
    """Tables may be named, or be found by the model's name; the session closes those that it opened."""
    del tables  # stored
    model = model_of()
    for names in (None, list(model.table_names())):
        with Session.open(drive, model, tables=names, weights=model.random_weights(SEED)) as session:
            np.testing.assert_allclose(session.infer(*batch(model, 2)), wanted(model, rows, batch(model, 2)), rtol=1e-5)
        with pytest.raises(TableClosed):
            session.tables[0].lookup([0], [0])
    with pytest.raises(NameUnknown):
        Session.open(drive, model, tables=["made.0", "made.1", "nowhere"])


def test_rows_change_in_flight(drive: Drive, rows: list[Floats]) -> None:
    """A table that is updated or swapped meanwhile: each sample is answered from one version of it."""
    model = model_of()
    changed = [rows[0], rows[1] + np.float32(0.25), rows[2]]
    made = model.create_tables(drive, prefix="old", tables=rows)
    with (
        Table.create(drive, "new", changed[1]) as other,
        Session.open(drive, model, tables=made, weights=model.random_weights(SEED), depth=8) as session,
    ):
        inputs = batch(model, 400)
        old, new = (wanted(model, version, inputs) for version in (rows, changed))
        for swapped in (False, True):
            tickets = [session.send(*inputs) for _ in range(8)]
            if swapped:
                made[1].swap(other)
            else:
                made[1].update(np.arange(ROWS), changed[1])
            for ticket in tickets:
                close = [np.isclose(ticket.read(), answer, rtol=1e-5, atol=0).all(axis=1) for answer in (old, new)]
                assert (close[0] | close[1]).all()
            np.testing.assert_allclose(session.infer(*inputs), new, rtol=1e-5)
            other.write_rows(0, rows[1])
            old, new = new, old
    for table in made:
        table.close()


def test_prefetch(rows: list[Floats]) -> None:
    """Rows of a batch to come are in the drive's cache when it comes: it reads no flash, and answers as ever."""
    model = model_of()
    inputs = batch(model, 8)
    cache = {"lookup.cache_rows": 4096}
    with Drive.start("rmssd", size=32 << 20, clock="virtual", memory=64 << 20, settings=cache) as drive:
        tables = model.create_tables(drive, tables=rows)
        with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED)) as session:
            session.prefetch(inputs[1])
            drive.clock.think(100_000_000)
            before = sum(table.stats.flash_reads for table in tables)
            np.testing.assert_allclose(session.infer(*inputs), wanted(model, rows, inputs), rtol=1e-5)
            assert sum(table.stats.flash_reads for table in tables) == before


# -- what is wrong


def test_ids_out_of_range(session: Session, rows: list[Floats]) -> None:
    """An id that names no row is told by table, position and value, in a large batch too; the drive serves on."""
    model = session.model
    dense, sparse = batch(model, 2 * session.max_samples)
    for value in (ROWS, -1, 1 << 40):
        ids = sparse[1][0].copy()
        ids[-2] = value
        bad = [sparse[0], (ids, sparse[1][1]), sparse[2]]
        with pytest.raises(IndexOutOfRangeOfTable, match=r"table 1.*rows are 0 to 299") as found:
            session.infer(dense, bad)
        assert (found.value.table, found.value.position, found.value.value) == (1, len(ids) - 2, value)
    inputs = batch(model, 3)
    np.testing.assert_allclose(session.infer(*inputs), wanted(model, rows, inputs), rtol=1e-5)


def test_one_bad_batch_of_many(session: Session, rows: list[Floats]) -> None:
    """A batch that fails takes no other with it."""
    model = session.model
    good = [batch(model, 3, n) for n in range(3)]
    dense, sparse = batch(model, 3, 9)
    first = session.send(*good[0])
    wrong = session.send(dense, [sparse[0], sparse[1], (np.full(4, ROWS), [0, 1, 2])])
    rest = [session.send(*inputs) for inputs in good[1:]]
    with pytest.raises(IndexOutOfRangeOfTable, match="table 2"):
        session.read(wrong)
    for ticket, inputs in zip([first, *rest], good, strict=True):
        np.testing.assert_allclose(session.read(ticket), wanted(model, rows, inputs), rtol=1e-5)


def test_inputs_are_checked_first(session: Session) -> None:
    """Wrong shapes and dtypes never reach the drive."""
    dense, sparse = batch(session.model, 4)
    accepted = session.info.accepted
    for features, ids in (
        (dense[:, 1:], sparse),
        (dense.astype(np.float64), sparse),
        (None, sparse),
        (dense, sparse[:2]),
        (dense[:3], [(ids, np.append(offsets, 0)) for ids, offsets in sparse]),
        (dense, [(ids.astype(float), offsets) for ids, offsets in sparse]),
    ):
        with pytest.raises(InputError):
            session.send(features, ids)
    assert session.info.accepted == accepted


def test_weights(drive: Drive, tables: list[Table], rows: list[Floats]) -> None:
    """Without weights the missing layer is named; they can be loaded, and loaded anew."""
    model = model_of()
    inputs = batch(model, 3)
    with Session.open(drive, model, tables=tables) as session:
        with pytest.raises(WeightsMissing, match="bottom layer 0"):
            session.infer(*inputs)
        session.load(model.random_weights(1))
        session.load(model.random_weights(SEED))
        np.testing.assert_allclose(session.infer(*inputs), wanted(model, rows, inputs), rtol=1e-5)
        with pytest.raises(ModelError, match="the model's is"):
            session.load(model_of("dot").random_weights())


def test_closed_in_flight(drive: Drive, tables: list[Table], rows: list[Floats]) -> None:
    """Closing drops batches in flight; their tickets say so, and the drive serves on."""
    model = model_of()
    session = Session.open(drive, model, tables=tables, weights=model.random_weights(SEED))
    tickets = [session.send(*batch(model, 5, n)) for n in range(3)]
    session.close()
    session.close()
    for ticket in tickets:
        with pytest.raises(SessionClosed, match="is closed"):
            session.read(ticket)
    for call in (lambda: session.infer(*batch(model, 1)), lambda: session.info):
        with pytest.raises(SessionClosed, match=r"Session\.open opens another"):
            call()
    with Session.open(drive, model, tables=tables, weights=model.random_weights(SEED)) as again:
        inputs = batch(model, 4)
        np.testing.assert_allclose(again.infer(*inputs), wanted(model, rows, inputs), rtol=1e-5)
        with pytest.raises(InvalidArgument, match="another session's"):
            again.read(tickets[0])


def test_a_table_of_a_session_stays_open(drive: Drive, session: Session) -> None:
    """The drive refuses to close a table that a session uses."""
    from emucsd.rm.opening import handle_of
    from emucsd_wire.vendor import VendorAdmin

    with pytest.raises(LookupRefused, match="BUSY"):
        drive.passthrough("admin", VendorAdmin.TABLE_CLOSE, cdw11=handle_of(session.tables[0]))
    session.infer(*batch(session.model, 2))


def test_sessions_are_limited(drive: Drive, tables: list[Table]) -> None:
    """One session too many is refused by its own error, and closing one makes room."""
    model = model_of()
    opened = []
    try:
        for _ in range(MAX_SESSIONS):
            opened.append(Session.open(drive, model, tables=tables, depth=1))
        with pytest.raises(SessionsFull, match=f"all {MAX_SESSIONS} sessions"):
            Session.open(drive, model, tables=tables, depth=1)
        opened.pop().close()
        opened.append(Session.open(drive, model, tables=tables, depth=1))
    finally:
        for session in opened:
            session.close()


def test_tables_that_do_not_fit(drive: Drive, tables: list[Table]) -> None:
    """Another number of tables, or of another shape, is refused before the drive is asked."""
    with pytest.raises(ModelError, match="2 tables given; made has 3"):
        Session.open(drive, model_of(), tables=tables[:2])
    with pytest.raises(ModelError, match=r"has 300 rows of 16; made has 301 of 16"):
        Session.open(drive, model_of().with_rows([ROWS, 301, ROWS]), tables=tables)
    with pytest.raises(InvalidArgument, match="minibatch 0"):
        Session.open(drive, model_of(), tables=tables, minibatch=0)
    with pytest.raises(InvalidArgument, match="depth 9"):
        Session.open(drive, model_of(), tables=tables, depth=9)


def test_reset(rows: list[Floats]) -> None:
    """After a controller reset a session is closed, and says so; opened again it works."""
    model = model_of()
    with Drive.start("rmssd", size=32 << 20, clock="virtual", memory=64 << 20) as drive:
        stored = model.create_tables(drive, tables=rows)
        session = Session.open(drive, model, tables=stored, weights=model.random_weights(SEED))
        drive.reset()
        with pytest.raises(SessionClosed, match="reset"):
            session.infer(*batch(model, 1))
        with Session.open(drive, model, weights=model.random_weights(SEED)) as again:
            inputs = batch(model, 4)
            np.testing.assert_allclose(again.infer(*inputs), wanted(model, rows, inputs), rtol=1e-5)
