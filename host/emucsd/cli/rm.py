"""`emucsd rm`: recommendation models, run whole inside a drive."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Sheet

from emucsd.cli.command import DIFFERENT, Command, CommandError, Option, Result, Settings
from emucsd.cli.progress import bar, spinner
from emucsd.cli.units import count, show_count, show_size, show_time

if TYPE_CHECKING:
    from emucsd.drive import Drive
    from emucsd.rm import Model
    from emucsd.table import Table

PUBLISHED = ("rmc1", "rmc2", "rmc3", "ncf", "wnd")
CLOSE = 1e-5  # relative: as far as an answer may be from NumPy's
_CHECKED = 1 << 30  # bytes of tables that are read back for the check, at most


def model_of(settings: Settings) -> Model:
    """The model that was asked for."""
    from emucsd.rm import Model

    if settings.model == "dlrm":
        if not settings.dlrm:
            raise CommandError("dlrm needs its arguments", "give --dlrm='--arch-mlp-bot=13-64-16 …'")
        return Model.from_dlrm_args(settings.dlrm)
    return Model.named(settings.model, settings.rows)


def run_models(settings: Settings) -> Result:
    from emucsd.rm import Model

    return {"models": [_described(Model.named(name)) for name in PUBLISHED]}


def _described(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "dense": model.dense,
        "bottom": [layer.outputs for layer in model.bottom],
        "tables": len(model.tables),
        "rows": sorted({table.rows for table in model.tables}, reverse=True),
        "dim": model.tables[0].dim,
        "lookups": model.lookups,
        "interaction": model.interaction,
        "interaction_width": model.interaction_width,
        "top": [layer.outputs for layer in model.top],
        "macs": model.macs,
        "weight_bytes": model.parameter_bytes,
        "table_bytes": model.table_bytes,
    }


def _stored(drive: Drive, model: Model, settings: Settings) -> tuple[list[Table], bool]:
    """The model's tables, made with random rows where they are not there; and whether they were made."""
    from emucsd.volume import NameUnknown, VolumeMissing

    prefix = settings.prefix or None
    try:
        return model.open_tables(drive, prefix), False
    except (NameUnknown, VolumeMissing):
        with spinner(f"making {len(model.tables)} tables, {show_size(model.table_bytes)}"):
            return model.create_tables(drive, settings.seed, prefix=prefix), True


def _options(settings: Settings) -> dict[str, Any]:
    """Of Session.open."""
    switches = {name: name not in settings.without for name in ("decompose", "compose", "search", "pipeline")}
    return {
        **switches,
        "depth": settings.depth,
        "grain": settings.grain,
        "fpga": settings.fpga,
        "minibatch": settings.minibatch,
    }


def run_info(settings: Settings) -> Result:
    """Open a session, ask how it is mapped, close it."""
    from emucsd import Drive
    from emucsd.rm import Session

    model = model_of(settings)
    with Drive.open(settings.drive) as drive:
        tables, made = _stored(drive, model, settings)
        with Session.open(drive, model, tables=tables, **_options(settings)) as session:
            mapping = session.info.as_dict()
        for table in tables:
            table.close()
    return {"drive": settings.drive, "model": _described(model), "tables_made": made, "session": mapping}


def run_infer(settings: Settings) -> Result:
    """Infer random samples with random weights in the drive, and check the answers against NumPy's."""
    from emucsd import Drive
    from emucsd.rm import Session

    model = model_of(settings)
    weights = model.random_weights(settings.seed)
    sizes = [min(settings.batch, settings.samples - at) for at in range(0, settings.samples, settings.batch)]
    batches = [model.random_batch(size, settings.seed + n) for n, size in enumerate(sizes)]
    with Drive.open(settings.drive) as drive:
        tables, made = _stored(drive, model, settings)
        with (
            Session.open(drive, model, tables=tables, weights=weights, **_options(settings)) as session,
            bar("inferring", settings.samples) as advance,
        ):
            answers: list[Any] = []
            began, first = time.perf_counter(), drive.clock.now
            for answer in session.stream(batches):
                answers.append(answer)
                advance(sum(map(len, answers)), "")
            wall, modelled = time.perf_counter() - began, (drive.clock.now - first) / 1e9
            mapping, virtual = session.info.as_dict(), drive.clock.virtual
        check = not settings.no_check and model.table_bytes <= _CHECKED
        rows = [table.read_rows() for table in tables] if check else []
        for table in tables:
            table.close()
    worst = None
    if check:
        wanted = [model.reference(weights, rows, *batch) for batch in batches]
        worst = max(float(np.max(np.abs(a - b) / np.abs(b))) for a, b in zip(answers, wanted, strict=True))
    return {
        "drive": settings.drive,
        "model": _described(model),
        "tables_made": made,
        "samples": settings.samples,
        "batch": settings.batch,
        "clock": "virtual" if virtual else "real",
        "wall_s": wall,
        "modelled_s": modelled,
        "inferences_per_s": settings.samples / (modelled if virtual else wall),
        "worst_difference": worst,
        "first": answers[0][0].tolist(),
        "session": mapping,
        "exit_code": DIFFERENT if worst is not None and worst > CLOSE else 0,
    }


# -- for people


def show_models(result: Result, console: Console) -> None:
    sheet = Sheet("model", "layers", "tables", "ids", "MLP", "rows take")
    for model in result["models"]:
        bottom, top = ("-".join(map(str, model[group])) for group in ("bottom", "top"))
        layers = f"{model['dense']}{bottom and '-'}{bottom}, {model['interaction']} {model['interaction_width']}-{top}"
        tables = f"{model['tables']} x {' and '.join(map(show_count, model['rows']))} x {model['dim']}"
        sizes = (show_size(model["weight_bytes"]), show_size(model["table_bytes"]))
        sheet.add_row(model["name"], layers, tables, str(model["lookups"]), *sizes)
    console.print(sheet)
    console.print("next: emucsd rm infer DRIVE rmc1 --rows 10k")


def show_info(result: Result, console: Console) -> None:
    session = result["session"]
    console.print(
        f"[bold]{escape(result['model']['name'])}[/] on {escape(result['drive'])}: {session['fpga']} at "
        f"{session['clock_mhz']} MHz, {session['minibatch']} samples a mini-batch, {session['depth']} batches in flight"
    )
    sheet = Sheet("layer", "shape", "kernel", "weights in", "cycles", "overlaps")
    for layer in session["layers"]:
        shape, kernel = f"{layer['inputs']} x {layer['outputs']}", f"{layer['kr']} x {layer['kc']}"
        composed = "yes" if layer["composed"] else "no"
        sheet.add_row(layer["group"], shape, kernel, layer["placement"].upper(), str(layer["cycles"]), composed)
    console.print(sheet)
    stages = ", ".join(f"{name} {show_time(session[f'{name}_ns'])}" for name in ("embedding", "bottom", "top"))
    console.print(f"  stages of a mini-batch: {stages}")
    used = ", ".join(
        f"{name.upper()} {r['used']} of {r['total']}" for name, r in session["resources"].items() if name != "dram"
    )
    dram = session["resources"]["dram"]
    console.print(f"  {used}; DRAM {show_size(dram['used'])} of {show_size(dram['total'])}")


def show_infer(result: Result, console: Console) -> None:
    model = result["model"]
    sheet = Sheet(
        title=f"{escape(model['name'])} on {escape(result['drive'])}", title_justify="left", show_header=False
    )
    sheet.add_row("inferred", f"{result['samples']} samples in batches of {result['batch']}")
    virtual = f", {show_time(result['modelled_s'] * 1e9)} of virtual time" if result["clock"] == "virtual" else ""
    sheet.add_row("took", f"{show_time(result['wall_s'] * 1e9)} of wall time{virtual}")
    sheet.add_row("rate", f"{show_count(result['inferences_per_s'])} inferences/s ({result['clock']} clock)")
    sheet.add_row("a sample", f"{model['lookups']} rows summed, {show_count(model['macs'])} multiplications")
    sheet.add_row("first answer", " ".join(f"{value:.6g}" for value in result["first"][:8]))
    sheet.add_row("against NumPy", _verdict(result["worst_difference"]))
    console.print(sheet)


def _verdict(worst: float | None) -> str:
    if worst is None:
        return "not checked"
    return f"[{'green' if worst <= CLOSE else 'red'}]differs by {worst:.2g} at most, relative[/]"


_SESSION = (
    Option("drive", "a drive's name, or its runtime folder"),
    Option("model", "a published model, or dlrm with --dlrm", choices=(*PUBLISHED, "dlrm")),
    Option("--rows", "rows of each table of a published model", 10_000, count),
    Option("--dlrm", "a command line of facebookresearch/dlrm that describes a model", "", metavar="ARGS"),
    Option("--prefix", "its tables are called PREFIX.0, PREFIX.1 …; they are made where they are not there (default: "
           "the model's name)", ""),
    Option("--seed", "of what is random: weights, inputs, rows", 1, int),
    Option("--depth", "batches in flight, 1 to 8", 4, count),
    Option("--without", "leave out this mechanism of the engine; repeatable", None,
           choices=("decompose", "compose", "search", "pipeline"), many=True),
    Option("--grain", "what leaves a flash page's register: the vector, or the page", "vector",
           choices=("vector", "page")),
    Option("--fpga", "whose resources the kernels must fit", "profile", choices=("profile", "XCVU9P", "XC7A200T")),
    Option("--minibatch", "samples of a mini-batch, at most: 1 for the shortest time of a single sample", None, count),
)  # fmt: skip

COMMAND = Command(
    name="rm",
    summary="run recommendation models whole inside a drive",
    children=(
        Command("models", "list the published models", run_models, show_models,
                examples=("emucsd rm models", "emucsd rm models --json")),
        Command("infer", "infer random samples with random weights in a drive, and check every answer", run_infer,
                show_infer,
                options=(*_SESSION,
                         Option("--samples", "to infer", 256, count),
                         Option("--batch", "samples a batch", 64, count),
                         Option("--no-check", "do not compute the answers here too", False)),
                examples=("emucsd rm infer disk0 rmc1",
                          "emucsd rm infer disk0 rmc3 --rows 100k --without search --json",
                          "emucsd rm infer disk0 dlrm --dlrm=--arch-mlp-bot=13-64-2")),
        Command("info", "say how a model is mapped onto the drive's engine", run_info, show_info, options=_SESSION,
                examples=("emucsd rm info disk0 rmc3", "emucsd rm info disk0 rmc3 --fpga XC7A200T --json")),
    ),
)  # fmt: skip
