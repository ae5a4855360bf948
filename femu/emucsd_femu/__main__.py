"""``python -m emucsd_femu serve ...`` runs a drive, ``testbed`` drives and machines, ``qemu`` says which QEMU does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


def _serve(arguments: Sequence[str]) -> int:
    from emucsd_femu.process import main

    return main(arguments)


def _qemu(arguments: Sequence[str]) -> int:
    from emucsd_femu.qemu_root import main

    return main(arguments)


def _accelerator(arguments: Sequence[str]) -> int:
    from emucsd_femu.accelerator import main

    return main(arguments)


def _testbed(arguments: Sequence[str]) -> int:
    from emucsd_femu.supervisor import main

    return main(arguments)


def _femu(arguments: Sequence[str]) -> int:
    from emucsd_femu.femu_build import main

    return main(arguments)


def _compile(arguments: Sequence[str]) -> int:
    from emucsd_femu.warm import main

    return main(arguments)


def _bench_vm(arguments: Sequence[str]) -> int:
    from emucsd_femu.bench_vm import main

    return main(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": _serve,
    "qemu": _qemu,
    "testbed": _testbed,
    "accelerator": _accelerator,
    "femu": _femu,
    "compile": _compile,
    "bench-vm": _bench_vm,
}


def main(arguments: Sequence[str]) -> int:
    """Hand over to the command that is named first."""
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: python -m emucsd_femu {{{','.join(COMMANDS)}}} [--help | options]", file=sys.stderr)
        return 2
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
