"""Whether a testbed's machines can run here, for `emucsd doctor`: QEMU, accelerator, images, namespaces."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from emucsd.cli.finding import GOOD, MISSING, PARTLY, Finding
from emucsd.process import environment

MACHINES = {"host machine": "x86_64", "ISP machine": "aarch64"}


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    """One of our own packages, as a process: this one imports none of them."""
    return subprocess.run(
        [sys.executable, "-m", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(),
        check=False,
    )  # fmt: skip


def _last(text: str, otherwise: str) -> str:
    return (text.strip().splitlines() or [otherwise])[-1]


def qemu(machine: str) -> Finding:
    """A QEMU that can attach a drive, as `python -m emucsd_femu qemu` finds it."""
    architecture = MACHINES[machine]
    name, needed_for = f"QEMU {architecture}", f"a drive's {machine}"
    done = _ask("emucsd_femu", "qemu", "--no-build", "--target", architecture)
    if done.returncode:
        step = "python -m emucsd_femu qemu makes a private one, without root; so does emucsd up"
        return Finding(name, MISSING, (done.stderr.strip().splitlines() or ["no answer"])[0], needed_for, step)
    return Finding(name, GOOD, done.stdout.strip().removeprefix("QEMU "), needed_for)


def accelerator() -> Finding:
    """KVM or TCG: a kernel is booted under KVM, once after each boot of this machine, and that decides."""
    needed_for = "virtual machines at full speed; under TCG they boot in some seconds and compute 10 to 50 times slower"
    done = _ask("emucsd_femu", "accelerator", "--json")
    try:
        told = json.loads(done.stdout)
    except ValueError:
        return Finding("accelerator", MISSING, _last(done.stderr, "no answer"), needed_for, "see QEMU above")
    found = "; ".join(f"{architecture}: {one['name'].upper()}, {one['reason']}" for architecture, one in told.items())
    if any(one["name"] == "kvm" for one in told.values()):
        return Finding("accelerator", GOOD, found, needed_for)
    step = "for KVM: virtualisation in the firmware or nested in the cloud, and you in the group kvm"
    return Finding("accelerator", PARTLY, found, needed_for, step)


def images() -> Finding:
    """What the machines boot."""
    needed_for = "a testbed's machines"
    done = _ask("emucsd_images", "list", "--json")
    try:
        rows = json.loads(done.stdout)
    except ValueError:
        return Finding("images", MISSING, _last(done.stderr, "no answer"), needed_for)
    built = [row["name"] for row in rows if row["built"]]
    step = "emucsd up makes what it needs (a few minutes, without root), or: python -m emucsd_images build"
    if not built:
        state = PARTLY if shutil.which("mmdebstrap") else MISSING
        return Finding("images", state, "none is built yet", needed_for, step)
    missing = [row["name"] for row in rows if not row["built"]]
    found = f"{', '.join(built)} built" + (f"; not yet: {', '.join(missing)}" if missing else "")
    return Finding("images", GOOD, found, needed_for)


def namespaces() -> Finding:
    """Whether the local ISP engine can have its own network and users."""
    from emucsd.isp.local import describe

    told = describe()
    return Finding("namespaces", GOOD if told["ok"] else MISSING, told["why"], "the local ISP engine")
