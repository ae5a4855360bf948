#!/bin/sh
# Every test that this machine can run: lint and types, unit, protocol, and the system tests where a QEMU can be had.
# The last line is pytest's summary.
#
#   scripts/test.sh                    all of it
#   scripts/test.sh tests/unit -k ftl  what follows goes to pytest
#
#   EMUCSD_SKIP_VM=1                   leave the system tests out, and install no Debian packages for them
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
setup test

# A CPU build of torch where the package index has one: never the CUDA build, which is gigabytes. Without it the tests that
# compare with PyTorch are skipped and say so.
torch=$(sed -n 's/^torch==//p' constraints.txt)
if ! "$VENV/bin/python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; then
    say "looking for torch $torch, CPU build"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$torch+cpu" >/dev/null 2>&1 ||
        say "no CPU build of torch $torch in this package index: tests against PyTorch are skipped"
fi

# What tests run besides Python, each with its Debian package. Tests of a program that is not there skip, with the reason.
want() { # want PROGRAM PACKAGE...: the first of the packages that can be had
    command -v "$1" >/dev/null 2>&1 && return
    program=$1
    shift
    for package in "$@"; do
        install_packages "$package" && return
    done
    say "no $program: tests that run it are skipped"
}
want fio fio
want iperf3 iperf3
want mkfs.ext4 e2fsprogs
want mkfs.xfs xfsprogs
want ip iproute2
ldconfig -p 2>/dev/null | grep -q libfuse.so.2 || want libfuse2 libfuse2 libfuse2t64

# What the system tests need to make themselves a QEMU and machines.
if [ -z "${EMUCSD_SKIP_VM:-}" ]; then
    want mmdebstrap mmdebstrap
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || want debian-archive-keyring debian-archive-keyring
    want vagrant vagrant
fi

if [ -n "${EMUCSD_SKIP_VM:-}" ]; then
    exec "$VENV/bin/python" -m pytest -q -m "not perf and not vm" "$@"
fi
exec "$VENV/bin/python" -m pytest -q "$@"
