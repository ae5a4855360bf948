"""`emucsd bench io`: block I/O of the direct client and its drive, as one JSON object.

from emucsd.bench.io import run_io_bench
print(json.dumps(run_io_bench(seconds=3), indent=2))
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from emucsd.bench import lateness, opening, rates
from emucsd.bench.environment import environment, scratch_folder
from emucsd.errors import InvalidArgument

KEYS = (
    "environment",
    "read_qd32_iops",
    "read_qd1_iops",
    "write_gc_iops",
    "virtual_commands_per_s",
    "lateness_p50_us",
    "lateness_p99_us",
    "open_clean_s",
    "open_crash_s",
    "resident_gb",
)
Step = Callable[[Path, float, rates.Tell], dict[str, Any]]
STEPS: dict[str, Step] = {
    "read": rates.read_rates,
    "write": rates.write_rate,
    "virtual": rates.virtual_rate,
    "lateness": lateness.lateness,
    "opening": lambda folder, _, tell: opening.opening(folder, tell),
}
_NEED = {"read": 3 << 30, "write": 8 << 30, "virtual": 1 << 30, "lateness": 1 << 30, "opening": opening.NEED_BYTES}


def run_io_bench(
    *, seconds: float = 3.0, steps: Collection[str] = tuple(STEPS), console: Console | None = None
) -> dict[str, Any]:
    """Measure, one drive after the other, each with a store of its own that is removed again.

    Where there are two cores the client spins on one of them and the drive on another, as SPDK's core masks do it.

    :param seconds: that each rate is measured for, without preconditioning
    :param steps: which of ``STEPS``; figures of those left out are None
    :param console: where progress is drawn (default: standard error, when a person looks at it)
    :returns: exactly ``KEYS``; what was done to the drives beforehand is in ``environment["preconditioning"]``
    :raises InvalidArgument: an unknown step, or no time to measure in
    """
    unknown = set(steps) - set(STEPS)
    if unknown or seconds <= 0:
        raise InvalidArgument(f"steps {sorted(unknown)}, {seconds} s: use some of {', '.join(STEPS)}, above 0 s")
    found: dict[str, Any] = dict.fromkeys(KEYS)
    found["environment"] = environment() | {"preconditioning": {}}
    shown = console or Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=shown, transient=True, disable=not shown.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("bench io", total=None)
        for name in STEPS:
            if name in steps:
                with scratch_folder(_NEED[name]) as folder:
                    at = environment(folder)
                    figures = STEPS[name](folder, seconds, _teller(progress, task, name))
                _merge(found, figures, name, at)
    return found


def _teller(progress: Progress, task: TaskID, step: str) -> rates.Tell:
    return lambda text: progress.update(task, description=f"{step}: {text}")


def _merge(found: dict[str, Any], figures: dict[str, Any], name: str, at: dict[str, Any]) -> None:
    """Figures to the top; what was done, and the load and the file system it was done on, to the environment."""
    done = figures.pop("preconditioning")[name]
    done |= {key: at[key] for key in ("store_folder", "store_filesystem", "load_average")}
    found["environment"]["preconditioning"][name] = done
    found.update(figures)
