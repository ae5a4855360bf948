# shellcheck shell=sh
# Sourced by the other scripts, from the top of the checkout: a virtual environment with what pyproject.toml asks for, at the
# versions of constraints.txt. Everything goes to standard error, so that a script's own output stays its own.
#
#   EMUCSD_VENV    where the environment lies (default: .venv)
#   EMUCSD_PYTHON  the Python to make it with (default: the newest python3 of 3.11 or later on PATH)

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $1"; say "hint: $2"; exit 1; }

VENV=${EMUCSD_VENV:-.venv}

# Debian packages, when this is root on Debian or Ubuntu; else the reason why not, and failure.
install_packages() {
    if ! command -v apt-get >/dev/null 2>&1; then
        say "not a Debian or Ubuntu: install by hand: $*"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        say "not root: ask for it to be done: apt-get install $*"
        return 1
    fi
    say "installing Debian packages: $*"
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >/dev/null 2>&1; then
        apt-get update >&2 || return 1
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >&2 || return 1
    fi
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${EMUCSD_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    if ! python=$(find_python); then
        install_packages python3 python3-venv || true
        python=$(find_python) || die "no Python 3.11 or newer" \
            "Debian 12 and Ubuntu 24.04 have one; else name it: EMUCSD_PYTHON=/path/to/python3.12 $0"
    fi
    say "making $VENV with $("$python" --version 2>&1)"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        install_packages "python$version-venv" || install_packages python3-venv ||
            die "$python has no venv module" "apt-get install python3-venv"
    fi
    "$python" -m venv "$VENV"
}

# setup EXTRAS: an environment with these extras of pyproject.toml; nothing is done when it is there and up to date.
setup() {
    new_enough "$VENV/bin/python" || make_venv
    stamp=$VENV/emucsd-installed-$1
    wanted="$PWD $1 $(cat pyproject.toml constraints.txt | cksum)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    say "installing emucsd[$1] into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$1]" >&2 ||
        die "pip could not install emucsd[$1]" "run it again to see why: $VENV/bin/pip install -c constraints.txt -e '.[$1]'"
    printf '%s\n' "$wanted" >"$stamp"
}
