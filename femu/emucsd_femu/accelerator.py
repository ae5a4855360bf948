"""KVM or TCG: whether an unmodified Linux boots under KVM on this machine is tried, once after each of its boots.

/dev/kvm that opens is not enough: in some clouds guests then hang at their first instruction. The trial is a machine
with a kernel and one program, which prints a word and reboots.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emucsd_femu import qemu, qemu_root
from emucsd_femu.errors import FemuError, MachineError, MachineTimeout, SettingsError
from emucsd_femu.qemu import Machine
from emucsd_femu.qemu_root import Qemu
from emucsd_images.errors import ImagesError
from emucsd_images.image import image
from emucsd_images.initramfs import Initramfs
from emucsd_wire.paths import cache_root

CHOICE = "EMUCSD_ACCEL"  # the user's own: kvm or tcg
_WORD = "EMUCSD-PROBE"
_FIRST_WORD_SECONDS = 5.0  # until the kernel's first line; half a second where KVM works
_BOOT_SECONDS = 30.0  # until the program ran
_MEMORY = 256 << 20
_MAGIC, _RESTART = (0xFEE1DEAD, 672274793), 0x01234567  # linux/reboot.h
_CONSOLES = {"x86_64": "ttyS0 earlyprintk=ttyS0", "aarch64": "ttyAMA0 earlycon"}
_IMAGES = {"x86_64": ("host", "host-small"), "aarch64": ("isp", "isp-small")}
_ARGUMENTS = {"tcg": "tcg,thread=multi", "kvm": "kvm"}


class Accelerator(NamedTuple):
    """How a machine's instructions are run."""

    name: str  # kvm or tcg
    reason: str

    @property
    def argument(self) -> str:
        """For ``-accel``."""
        return _ARGUMENTS[self.name]

    def model(self, architecture: str) -> str:
        """For ``-cpu``, where nothing else is asked for."""
        return "host" if self.name == "kvm" else "max"

    def __str__(self) -> str:
        return f"{self.name.upper()}: {self.reason}"


def choose(emulator: Qemu, architecture: str, kernel: Path | None) -> Accelerator:
    """$EMUCSD_ACCEL, else what is known since this machine's boot, else what a trial shows.

    :param kernel: what the trial boots; None: no trial, and TCG where nothing is known
    :raises SettingsError: $EMUCSD_ACCEL is neither
    """
    if chosen := os.environ.get(CHOICE):
        if chosen not in _ARGUMENTS:
            raise SettingsError(f"{CHOICE}={chosen}: use kvm or tcg")
        return Accelerator(chosen, f"chosen by {CHOICE}")
    if architecture != platform.machine():
        return Accelerator("tcg", f"{architecture} is emulated on {platform.machine()}")
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        return Accelerator("tcg", f"/dev/kvm: {problem.strerror}")
    if known := _remembered(emulator):
        return known
    if kernel is None:
        return Accelerator("tcg", "/dev/kvm opens, but no guest has been tried under it since this machine's boot")
    found = trial(emulator, architecture, kernel, "kvm")
    _remember(emulator, found)
    return found


def main(arguments: Sequence[str]) -> int:
    """Say for each kind of machine how it would run here, and why."""
    parser = argparse.ArgumentParser(prog="python -m emucsd_femu accelerator", description="KVM or TCG, and why.")
    parser.add_argument("--no-trial", action="store_true", help="boot nothing; tell what is known")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    found: dict[str, Accelerator] = {}
    for architecture, names in _IMAGES.items():
        try:
            emulator = qemu_root.find(architecture, build=False)
            kernel = None if options.no_trial else _kernel(names)
            found[architecture] = choose(emulator, architecture, kernel)
        except FemuError as problem:
            print(f"{architecture}: {problem}", file=sys.stderr)
    if options.json:
        print(json.dumps({architecture: one._asdict() for architecture, one in found.items()}))
    else:
        print("\n".join(f"{architecture}: {one}" for architecture, one in found.items()))
    return 0 if found else 1


def _kernel(names: Sequence[str]) -> Path | None:
    """That of an image which is there already."""
    for name in names:
        with contextlib.suppress(ImagesError):
            return image(name, build=False).kernel
    return None


def trial(emulator: Qemu, architecture: str, kernel: Path, name: str) -> Accelerator:
    """Boot a guest under ``name`` and see. :returns: it, or TCG with the reason why not"""
    folder = Path(tempfile.mkdtemp(prefix="emucsd-probe-"))
    begun = time.monotonic()
    try:
        machine = _guest(emulator, architecture, kernel, name, folder)
        with machine:
            machine.wait_for("\n", _FIRST_WORD_SECONDS)
            machine.wait_for(_WORD, _BOOT_SECONDS)
    except MachineTimeout:
        seconds = time.monotonic() - begun
        return Accelerator("tcg", f"a guest hangs under {name.upper()}: it did not boot in {seconds:.0f} s")
    except (MachineError, OSError) as problem:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        return Accelerator("tcg", f"a guest does not start under {name.upper()}: {lines[-1][:200]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Accelerator(name, f"a guest booted under it in {time.monotonic() - begun:.1f} s")


def _guest(emulator: Qemu, architecture: str, kernel: Path, name: str, folder: Path) -> Machine:
    archive = Initramfs()
    archive.console()
    archive.file("init", program(architecture), 0o755)
    (folder / "initrd").write_bytes(archive.pack())
    words = qemu.command(
        emulator,
        kernel=kernel,
        initrd=folder / "initrd",
        append=f"console={_CONSOLES[architecture]} panic=-1",
        console_file=folder / "console",
        memory_bytes=_MEMORY,
        accelerator=_ARGUMENTS[name],
        architecture=architecture,
        model=Accelerator(name, "").model(architecture),
    )
    return Machine(words, folder, emulator.environment)


def program(architecture: str) -> bytes:
    """A whole static program, by hand: write(1, word), reboot(RESTART). No compiler is needed to try a kernel."""
    word = f"{_WORD}\n".encode()
    return _elf(62, _x86_64(word)) if architecture == "x86_64" else _elf(183, _aarch64(word))


def _x86_64(word: bytes) -> bytes:
    def load(register: int, value: int) -> bytes:  # mov r32, imm32
        return bytes((0xB8 + register,)) + struct.pack("<I", value)

    eax, edx, esi, edi = 0, 2, 6, 7
    call = b"\x0f\x05"
    restart = load(eax, 169) + load(edi, _MAGIC[0]) + load(esi, _MAGIC[1]) + load(edx, _RESTART) + call + b"\xeb\xfe"
    rest = load(edx, len(word)) + call + restart
    return load(eax, 1) + load(edi, 1) + b"\x48\x8d\x35" + struct.pack("<I", len(rest)) + rest + word  # lea rsi, [word]


def _aarch64(word: bytes) -> bytes:
    def load(register: int, value: int) -> list[int]:  # movz, movk
        return [0x52800000 | (value & 0xFFFF) << 5 | register, 0x72A00000 | (value >> 16) << 5 | register]

    call = 0xD4000001  # svc 0
    restart = [*load(8, 142), *load(0, _MAGIC[0]), *load(1, _MAGIC[1]), *load(2, _RESTART), call, 0x14000000]
    rest = [*load(2, len(word)), *load(8, 64), call, *restart]
    address = 0x10000000 | (len(rest) + 1) << 5 | 1  # adr x1, word
    return struct.pack(f"<{len(rest) + 3}I", *load(0, 1), address, *rest) + word


def _elf(machine: int, image: bytes) -> bytes:
    """A 64-bit executable of one segment."""
    head, base = 64 + 56, 0x400000
    size = head + len(image)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + image


def _file() -> Path:
    return cache_root() / "accelerator.json"


def _key(emulator: Qemu) -> list[str]:
    """A verdict holds for one boot of this machine and one QEMU."""
    return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), *emulator.command]


def _remembered(emulator: Qemu) -> Accelerator | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(_file().read_text())
        if content["key"] == _key(emulator) and content["name"] in _ARGUMENTS:
            return Accelerator(content["name"], str(content["reason"]))
    return None


def _remember(emulator: Qemu, found: Accelerator) -> None:
    content = {"key": _key(emulator), "name": found.name, "reason": found.reason}
    with contextlib.suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        draft = _file().with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(content) + "\n")
        draft.replace(_file())
