"""`emucsd bench`: figures with the machine that they were measured on. Nothing is asserted."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import Command, Option, Result, Settings
from emucsd.cli.units import count, seconds, show_count, show_time, size
from emucsd.tunnel.network import DEFAULT_MTU


def _iops(value: float) -> str:
    return f"{show_count(value)} IOPS"


def _rate(value: float) -> str:
    return f"{show_count(value)}/s"


def _us(value: float) -> str:
    return show_time(value * 1e3)


def _s(value: float) -> str:
    return show_time(value * 1e9)


def _gb(value: float) -> str:
    return f"{value:.2f} GB"


def _mb(value: float) -> str:
    return f"{value:,.0f} MB/s"


def _mbit(value: float) -> str:
    return f"{value:,.0f} Mbit/s"


def _images(value: float) -> str:
    return f"{value:.1f} images/s"


def _percent(value: float) -> str:
    return f"{value:.1f} % of a core"


def _plain(value: float | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.3g}"


# key -> what it is, and how it is shown
FIGURES = {
    "read_qd32_iops": ("random 4 KiB reads, queue depth 32, null profile, real clock", _iops),
    "read_qd1_iops": ("random 4 KiB reads, queue depth 1, over 1 GiB, null profile, real clock", _iops),
    "write_gc_iops": ("random 4 KiB writes, queue depth 32, steady state with garbage collection", _iops),
    "virtual_commands_per_s": ("simulated commands a wall second, femu profile, virtual clock", _rate),
    "lateness_p50_us": ("completion seen after its modelled time, femu profile, 50 K IOPS: median", _us),
    "lateness_p99_us": ("the same, 99th percentile", _us),
    "open_clean_s": ("opening a 1 TiB drive after a clean stop", _s),
    "open_crash_s": ("opening it after kill -9 with 1 M changed mappings", _s),
    "resident_gb": ("its resident memory", _gb),
    "vectors_per_s": ("vectors summed in the drive a wall second, bags of 80, every vector timed", _rate),
    "torch_ratio": ("the same against torch.nn.EmbeddingBag, one thread, table in memory", _plain),
    "rmc1_inferences_per_s": ("RMC1 inferred in the drive, batch 64, everything timed", _rate),
    "rmc1_torch_ratio": ("the same against PyTorch, one thread, tables in memory", _plain),
    "rmc2_inferences_per_s": ("RMC2", _rate),
    "rmc2_torch_ratio": ("the same against PyTorch", _plain),
    "rmc3_inferences_per_s": ("RMC3", _rate),
    "rmc3_torch_ratio": ("the same against PyTorch", _plain),
    "worst_difference": ("largest relative difference of an answer from NumPy's", _plain),
    "qd32_ratio": (
        "fio in a guest, random 4 KiB reads, queue depth 32: against QEMU's NVMe device, RAM-backed",
        _plain,
    ),
    "qd1_ratio": ("the same, queue depth 1", _plain),
    "qd32_null_ratio": ("queue depth 32, against QEMU's device without data (null-co)", _plain),
    "qd1_null_ratio": ("the same, queue depth 1", _plain),
    "idle_cpu": ("the drive's processor time while its guest is idle, cores", _plain),
    "tunnel_to_isp_mbit": ("tunnel, TCP to the ISP engine's end", _mbit),
    "tunnel_to_host_mbit": ("the same, to the host's end", _mbit),
    "tunnel_ping_median_us": ("its round trip, one packet at a time: median", _us),
    "tunnel_ping_p99_us": ("the same, 99th percentile", _us),
    "tunnel_idle_host_percent": ("processor time of the host's end while nothing comes", _percent),
    "tunnel_idle_isp_percent": ("of the ISP engine's end", _percent),
    "tunnel_idle_drive_percent": ("of the drive", _percent),
    "speed_ratio": ("training: the host's rank against one engine's, each alone on its tuned batch", _plain),
    "whole_images_per_s": ("host and engines together, tuned batches", _images),
    "equal_images_per_s": ("the same, equal batches on all ranks", _images),
    "whole_over_sum": ("together, against the sum of all alone", _plain),
    "whole_over_equal": ("tuned batches against equal ones", _plain),
    "sync_mb": ("gradients of MobileNetV2 over the tunnel, each way", _mb),
    "iperf_bidir_mb": ("iperf3 over it, each way while both go on", _mb),
    "iperf_mb": ("the same, one way alone", _mb),
    "sync_share": ("gradients, both ways together, against iperf3 one way alone", _plain),
    "sync_bidir_share": ("gradients each way, against iperf3 each way while both go on", _plain),
    "mount_read_qd1_iops": ("mounted namespace, random 4 KiB reads by fio, queue depth 1", _iops),
    "mount_read_qd32_iops": ("the same, queue depth 32", _iops),
    "mount_write_qd1_iops": ("random 4 KiB writes, queue depth 1", _iops),
    "mount_write_qd32_iops": ("the same, queue depth 32", _iops),
    "mount_read_mb": ("sequential 1 MiB reads, queue depth 4", _mb),
    "mount_write_mb": ("sequential 1 MiB writes, queue depth 4", _mb),
    "mount_cached_read_mb": ("sequential reads through the page cache (--cache)", _mb),
    "mount_loop_read_qd32_iops": ("loop device on it, direct I/O, random 4 KiB reads, queue depth 32", _iops),
    "mount_loop_read_mb": ("the same, sequential 1 MiB reads", _mb),
    "bit_equal": ("sums equal NumPy's and PyTorch's, bit for bit", _plain),
}


def run_tunnel(settings: Settings) -> Result:
    from emucsd.bench.tunnel import run_tunnel_bench

    return run_tunnel_bench(seconds=settings.time, mtu=settings.mtu, profile=settings.profile)


def run_io(settings: Settings) -> Result:
    from emucsd.bench.io import STEPS, run_io_bench

    return run_io_bench(seconds=settings.time, steps=settings.steps or tuple(STEPS))


def run_lookup(settings: Settings) -> Result:
    from emucsd.bench.lookup import run_lookup_bench

    return run_lookup_bench(
        seconds=settings.time, rows=settings.rows, dim=settings.dim, length=settings.length, profile=settings.profile
    )


def run_rm(settings: Settings) -> Result:
    from emucsd.bench.rm import BATCHES, MODELS, run_rm_bench

    return run_rm_bench(
        seconds=settings.time,
        models=settings.model or MODELS,
        batches=settings.batch or BATCHES,
        table_bytes=settings.tables,
        profile=settings.profile,
    )


def run_mount(settings: Settings) -> Result:
    from emucsd.bench.mount import run_mount_bench

    return run_mount_bench(seconds=settings.time, profile=settings.profile)


def run_stannis(settings: Settings) -> Result:
    from emucsd.bench.stannis import run_stannis_bench
    from emucsd.cli.progress import spinner

    with spinner("training") as tell:
        return run_stannis_bench(data=settings.data, steps=settings.steps, seconds=settings.time, tell=tell)


def run_vm(settings: Settings) -> Result:
    from emucsd.bench.vm import run_vm_bench

    return run_vm_bench(rounds=settings.rounds, seconds=settings.time)


def show(result: Result, console: Console) -> None:
    sheet = Table("", "figure")
    sheet.columns[1].justify = "right"
    for key, value in result.items():
        if key in FIGURES:
            about, form = FIGURES[key]
            sheet.add_row(about, form(value) if value is not None else "not measured")
    console.print(sheet)
    for key, value in result["environment"].items():
        if not isinstance(value, dict):
            console.print(f"  [dim]{escape(key.replace('_', ' '))}: {escape(str(value))}[/]")


COMMAND = Command(
    name="bench",
    summary="measure, and say on what machine",
    children=(
        Command("io", "block I/O: rates, lateness, opening a large drive", run_io, show,
                options=(Option("--time", "how long each rate is measured", 3.0, seconds, metavar="SECONDS"),
                         Option("--steps", "only this step; repeatable (default: all)", None,
                                choices=("read", "write", "virtual", "lateness", "opening"), many=True)),
                examples=("emucsd bench io", "emucsd bench io --steps read --time 1 --json")),
        Command("lookup", "lookups in the drive against PyTorch in memory", run_lookup, show,
                options=(Option("--time", "how long each side is measured", 3.0, seconds, metavar="SECONDS"),
                         Option("--rows", "rows of the table", 4_000_000, count),
                         Option("--dim", "FP32 elements a row", 32, count),
                         Option("--length", "ids a bag", 80, count),
                         Option("--profile", "of the drive", "rmssd")),
                examples=("emucsd bench lookup", "emucsd bench lookup --rows 1M --json")),
        Command("rm", "whole models inferred in the drive against PyTorch in memory", run_rm, show,
                options=(Option("--time", "how long each side is measured, a batch size", 2.0, seconds,
                                metavar="SECONDS"),
                         Option("--model", "only this one; repeatable (default: all)", None,
                                choices=("rmc1", "rmc2", "rmc3"), many=True),
                         Option("--batch", "samples a batch; repeatable (default: 1, 16, 64; figures: the largest's)",
                                None, count, many=True),
                         Option("--tables", "size of a model's tables; each is in memory twice", 512 << 20, size),
                         Option("--profile", "of the drive", "rmssd")),
                examples=("emucsd bench rm", "emucsd bench rm --model rmc1 --tables 64MiB --json")),
        Command("tunnel", "TCP/IP through a drive: both ends on this machine, in network namespaces", run_tunnel, show,
                options=(Option("--time", "how long each direction is measured", 3.0, seconds, metavar="SECONDS"),
                         Option("--mtu", "of the tunnel's network", DEFAULT_MTU, count),
                         Option("--profile", "of the drive", "null")),
                examples=("emucsd bench tunnel", "emucsd bench tunnel --mtu 1500 --json")),
        Command("mount", "a mounted namespace under fio", run_mount, show,
                options=(Option("--time", "how long each job takes", 2.0, seconds, metavar="SECONDS"),
                         Option("--profile", "of the drive", "null")),
                examples=("emucsd bench mount", "emucsd bench mount --time 5 --json")),
        Command("stannis", "training on a host and two slow engines: together, alone, with equal batches", run_stannis,
                show,
                options=(Option("--data", "images of 32x32, as for emucsd train (default: made here)", None,
                                metavar="LOC"),
                         Option("--steps", "that are measured of each run", 8, count),
                         Option("--time", "how long each run of iperf3 takes", 3.0, seconds, metavar="SECONDS")),
                examples=("emucsd bench stannis", "emucsd bench stannis --data cifar10.tar/train --json")),
        Command("vm", "a drive in a guest machine against QEMU's own NVMe device", run_vm, show,
                options=(Option("--rounds", "of all disks and queue depths", 5, count),
                         Option("--time", "how long each run takes", 2.0, seconds, metavar="SECONDS")),
                examples=("emucsd bench vm", "emucsd bench vm --rounds 2 --time 1 --json")),
    ),
)  # fmt: skip
