#!/bin/sh
# The demo, from nothing: an emulated drive on this machine, real lookups inside it, every answer checked, no root, no VM.
#
#   scripts/demo.sh                    make .venv where it is missing, then run `emucsd demo`
#   scripts/demo.sh --help             what else `emucsd demo` can be told
#
# PyTorch is not installed for this (it is large); where it is there already, the answers are checked against it too.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
setup plots
exec "$VENV/bin/emucsd" demo "$@"
