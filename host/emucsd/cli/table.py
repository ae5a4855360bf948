"""`emucsd table`: embedding tables on a drive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Sheet

from emucsd.cli.command import Command, CommandError, Option, Result, Settings
from emucsd.cli.progress import bar
from emucsd.cli.units import count, show_count, show_size

CHUNK = 4 << 20  # bytes of rows made at a time


def made_rows(rows: int, dim: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Rows as an untrained embedding has them: normal, repeatable."""
    rng = np.random.default_rng(seed)
    step = max(CHUNK // (4 * dim), 1)
    for first in range(0, rows, step):
        yield rng.standard_normal((min(step, rows - first), dim), np.float32)


def _given(path: str) -> NDArray[np.float32]:
    """Rows of a .npy file, mapped. :raises CommandError: not one, or not FP32[rows, dim]"""
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as exc:
        raise CommandError(f"--rows-from {path}: {exc}", "give a .npy file: np.save('rows.npy', weights)") from exc
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2:
        found = f"{rows.dtype}{list(rows.shape)}" if isinstance(rows, np.ndarray) else "an archive"
        raise CommandError(f"--rows-from {path} is {found}", "a table is float32[rows, dim]: weights.astype('float32')")
    return rows


def permissions(text: str) -> int:
    """`640` -> 0o640. :raises ValueError: no permission bits"""
    try:
        bits = int(text.removeprefix("0o"), 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o777:
        raise ValueError(f"{text!r} is no mode: give permission bits as a file's, in octal, like 600 or 644")
    return bits


def user(text: str) -> int:
    """A user's name or number. :raises ValueError: there is no such user"""
    import pwd

    try:
        return int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ValueError(f"{text!r} is no user of this machine: give a name, or a number") from None


def plan(settings: Settings) -> Result:
    from emucsd.rowtypes import dtype_of, stride_of

    rows, dim = _given(settings.rows_from).shape if settings.rows_from else (settings.rows, settings.dim)
    size = rows * stride_of(dtype_of(settings.dtype), dim)
    found = {"create": settings.table, "on": settings.drive, "rows": rows, "dim": dim, "bytes": size}
    return {**found, "dtype": settings.dtype, "generated": settings.generated}


def run_create(settings: Settings) -> Result:
    """Write the rows, then publish the name."""
    from emucsd import Drive
    from emucsd.table import Table

    if settings.generated and (settings.rows_from or settings.dtype != "float32"):
        raise CommandError("--generated rows are float32, made from --seed", "leave --rows-from and --dtype out")
    given = _given(settings.rows_from) if settings.rows_from else None
    _prepare(settings)
    if settings.generated:
        return _create_generated(settings)
    rows, dim = given.shape if given is not None else (settings.rows, settings.dim)
    step = max(CHUNK // (4 * dim), 1)
    chunks = (
        made_rows(rows, dim, settings.seed)
        if given is None
        else (np.asarray(given[first : first + step]) for first in range(0, rows, step))
    )
    size = plan(settings)["bytes"]
    with Drive.open(settings.drive) as drive, bar(f"writing {settings.table}", size) as advance:
        told = lambda done: advance(done, f"{show_size(done)} of {show_size(size)}")  # noqa: E731
        options = {"dtype": settings.dtype, "nsid": settings.nsid, "mode": settings.mode, "owner": settings.owner}
        with Table.create(drive, settings.table, (rows, dim), chunks, progress=told, **options) as table:
            return {"drive": settings.drive, "table": _described(table.info)}


def _create_generated(settings: Settings) -> Result:
    from emucsd import Drive
    from emucsd.table import Table, generated

    data = generated(settings.seed, settings.rows, settings.dim)
    options = {"nsid": settings.nsid, "mode": settings.mode, "owner": settings.owner}
    with Drive.open(settings.drive) as drive, Table.create(drive, settings.table, data, **options) as table:
        return {"drive": settings.drive, "table": _described(table.info)}


def _prepare(settings: Settings) -> None:
    """A volume for the table. :raises CommandError: other data is there, and --format was not given"""
    from emucsd import Drive
    from emucsd.volume import Volume, VolumeMissing

    with Drive.open(settings.drive) as drive:
        space = drive.namespace(settings.nsid)
        if settings.format:
            Volume.format(space)
            return
        try:
            Volume.open(space, create=True)
        except VolumeMissing as exc:
            hint = "use a fresh drive, or --format to make a volume there and lose what the namespace holds"
            raise CommandError(f"{settings.drive} holds other data, and no volume for tables", hint) from exc


def run_list(settings: Settings) -> Result:
    from emucsd import Drive
    from emucsd.table import Table

    with Drive.open(settings.drive) as drive:
        return {"drive": settings.drive, "tables": [_described(t) for t in Table.list(drive, nsid=settings.nsid)]}


def run_show(settings: Settings) -> Result:
    from emucsd import Drive
    from emucsd.table import Table

    with Drive.open(settings.drive) as drive, Table.open(drive, settings.table, nsid=settings.nsid) as table:
        found = table.read_rows(0, min(settings.first, len(table)))
        extents = [extent._asdict() for extent in table.info.extents]
        return {
            "drive": settings.drive,
            "table": {**_described(table.info), "extents": extents},
            "rows": found.tolist(),
        }


def run_drop(settings: Settings) -> Result:
    from emucsd import Drive
    from emucsd.table import Table

    with Drive.open(settings.drive) as drive:
        Table.drop(drive, settings.table, nsid=settings.nsid)
    return {"drive": settings.drive, "dropped": settings.table}


def _described(info: Any) -> dict[str, Any]:
    return {
        "name": info.name,
        "rows": info.rows,
        "dim": info.dim,
        "dtype": info.dtype,
        "row_bytes": info.row_bytes,
        "seed": info.seed,
        "owner": None if info.owner is None else info.owner.uid,
        "mode": None if info.owner is None else f"{info.owner.mode:o}",
        "bytes": info.size,
        "extents": len(info.extents),
    }


def _kind(table: dict[str, Any]) -> str:
    """Its row type, for people."""
    return str(table["dtype"]) if table["seed"] is None else f"{table['dtype']}, made from seed {table['seed']}"


def _owner(table: dict[str, Any]) -> str:
    if table["owner"] is None:
        return "everybody"
    import pwd

    try:
        name = pwd.getpwuid(table["owner"]).pw_name
    except KeyError:
        name = str(table["owner"])
    return f"{name} {table['mode']}"


def show_create(result: Result, console: Console) -> None:
    table, drive = result["table"], escape(result["drive"])
    name = escape(table["name"])
    console.print(
        f"[bold]{name}[/]: {table['rows']} rows of {table['dim']} {_kind(table)}, "
        f"{show_size(table['bytes'])}, on {drive}"
    )
    console.print(f"next: emucsd lookup {drive} {name} --bags 1000 --length 80")


def show_list(result: Result, console: Console) -> None:
    if not result["tables"]:
        console.print(
            f"{escape(result['drive'])} has no tables; emucsd table create {escape(result['drive'])} NAME makes one"
        )
        return
    sheet = Sheet("table", "rows", "dim", "dtype", "size", "extents", "owner")
    for table in result["tables"]:
        cells = (show_count(table["rows"]), str(table["dim"]), _kind(table), show_size(table["bytes"]))
        sheet.add_row(escape(table["name"]), *cells, str(table["extents"]), escape(_owner(table)))
    console.print(sheet)


def show_show(result: Result, console: Console) -> None:
    table = result["table"]
    console.print(
        f"[bold]{escape(table['name'])}[/]: {table['rows']} rows of {table['dim']} {_kind(table)}, "
        f"{show_size(table['bytes'])}, {escape(_owner(table))}"
    )
    for extent in table["extents"]:
        console.print(f"  {extent['blocks']} blocks from LBA {extent['slba']}")
    for number, row in enumerate(result["rows"]):
        some = " ".join(f"{value:.4g}" for value in row[:8])
        console.print(f"  row {number}: {some}{' …' * (len(row) > 8)}")


def show_drop(result: Result, console: Console) -> None:
    console.print(f"{escape(result['dropped'])} is gone from {escape(result['drive'])}; its blocks are free")


DRIVE = Option("drive", "a drive's name, or its runtime folder")
TABLE = Option("table", "the table's name")
NSID = Option("--nsid", "namespace", 1, int)
COMMAND = Command(
    name="table",
    summary="make, list, show and drop embedding tables on a drive",
    children=(
        Command("create", "store a table: rows of your own, or made ones", run_create, show_create, plan,
                options=(DRIVE, TABLE,
                         Option("--rows", "number of rows", 100_000, count),
                         Option("--dim", "elements a row", 32, count),
                         Option("--dtype", "that rows are stored as", "float32",
                                choices=("float32", "float16", "int8", "int4")),
                         Option("--generated", "rows are made from --seed when needed, and take no room", False),
                         Option("--seed", "of the made rows", 1, int),
                         Option("--mode", "who may use it: permission bits, as a file's", 0o600, permissions,
                                metavar="600"),
                         Option("--owner", "whose it is (root gives tables away); else yours", None, user),
                         Option("--format", "make a new volume first: what the namespace holds is lost", False),
                         Option("--rows-from", "a .npy file of float32[rows, dim]", "", metavar="FILE"),
                         NSID),
                examples=("emucsd table create disk0 items --rows 1M --dim 32",
                          "emucsd table create disk0 words --rows-from weights.npy --dtype int8",
                          "emucsd table create disk0 huge --rows 100M --dim 64 --generated")),
        Command("list", "list a drive's tables", run_list, show_list, options=(DRIVE, NSID),
                examples=("emucsd table list disk0",)),
        Command("show", "say where a table lies and show its first rows", run_show, show_show,
                options=(DRIVE, TABLE, Option("--first", "rows to show", 4, int), NSID),
                examples=("emucsd table show disk0 items",)),
        Command("drop", "forget a table and free its blocks", run_drop, show_drop,
                lambda settings: {"drop": settings.table, "from": settings.drive}, options=(DRIVE, TABLE, NSID),
                examples=("emucsd table drop disk0 items",)),
    ),
)  # fmt: skip
