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

# What the system tests need to make themselves a QEMU and a guest (they skip, with the reason, where it is missing).
if [ -z "${EMUCSD_SKIP_VM:-}" ]; then
    missing=
    command -v mmdebstrap >/dev/null 2>&1 || missing="$missing mmdebstrap"
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
    # shellcheck disable=SC2086  # a list of package names
    [ -z "$missing" ] || install_packages $missing || say "the system tests will be skipped"
fi

if [ -n "${EMUCSD_SKIP_VM:-}" ]; then
    exec "$VENV/bin/python" -m pytest -q -m "not perf and not vm" "$@"
fi
exec "$VENV/bin/python" -m pytest -q "$@"
