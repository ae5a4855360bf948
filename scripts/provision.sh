#!/bin/sh
# Turns a bare Debian 13 machine into one on which the testbed runs; also Debian 12 and Ubuntu 24.04. Run it again at any
# time: what is done is left as it is. It is what `vagrant up` runs, and what a machine of your own needs.
#
#   scripts/provision.sh                         as root, or as a user with sudo
#   scripts/provision.sh --help                  what it can be told
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

usage() {
    cat <<'END'
usage: scripts/provision.sh [OPTION...]

Installs Debian packages, a virtual environment with emucsd in it, `emucsd` in /usr/local/bin, a QEMU that can attach
drives, and the machines' images; then says what this machine can run. Needs root for the packages, the link and the
service: run it as root, or as a user with sudo. Everything else belongs to one user and is made as that user.

  --images small|full|none  images of the host machine and the ISP machine (default: small; full has PyTorch in it)
  --qemu private|none       a QEMU unpacked from Debian's backports into the user's cache where the installed one is too
                            old to attach drives, or leave that to the first use (default: private)
  --user NAME               whose testbed it is (default: who called sudo, else who runs this)
  --venv FOLDER             where the virtual environment lies (default: $EMUCSD_VENV, else .venv in the checkout)
  --extras LIST             extras of pyproject.toml, like plots,torch (default: plots)
  --service                 bring the testbed up now and at every boot: the systemd unit emucsd-testbed.service
  --up WORDS                what the service says to `emucsd up` (default: what the images allow)
  --no-doctor               do not end with `emucsd doctor`
  --help                    this text

  scripts/provision.sh --images none --qemu none       only the drive and its tools; a minute
  scripts/provision.sh --user ada --service            the testbed of user ada, at every boot

EMUCSD_DEBIAN_MIRROR names the Debian mirror for QEMU and images (default: the one that apt uses; Ubuntu has none).
Debian's packages come by apt and Python's by pip, each as it is set up on this machine.
END
}

one_of() { # one_of OPTION VALUE ALLOWED...
    option=$1 value=$2
    shift 2
    for allowed in "$@"; do [ "$value" != "$allowed" ] || return 0; done
    die "$option $value: choose one of: $*" "scripts/provision.sh --help"
}

images=small qemu=private user='' extras=plots service='' up='' doctor=yes
while [ $# -gt 0 ]; do
    case $1 in
    --images | --qemu | --user | --venv | --extras | --up)
        [ $# -ge 2 ] || die "$1 wants a value" "scripts/provision.sh --help"
        case $1 in
        --images) images=$2 ;;
        --qemu) qemu=$2 ;;
        --user) user=$2 ;;
        --venv) VENV=$2 ;;
        --extras) extras=$2 ;;
        --up) up=$2 ;;
        esac
        shift
        ;;
    --service) service=yes ;;
    --no-doctor) doctor='' ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) die "$1 is no option" "scripts/provision.sh --help" ;;
    esac
    shift
done
one_of --images "$images" small full none
one_of --qemu "$qemu" private none

# -- who does what ----------------------------------------------------------------------------------------------------
me=$(id -un)
[ -n "$user" ] || { [ "$me" = root ] && user=${SUDO_USER:-root}; } || user=$me
home=$(getent passwd "$user" | cut -d: -f6)
[ -n "$home" ] || die "there is no user $user" "adduser $user, or give another --user"
[ "$me" = root ] || [ "$me" = "$user" ] || die "--user $user: only root can do this for another user" "sudo $0 --user $user"
uid=$(id -u "$user")

as_root() {
    if [ "$me" = root ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        die "this needs root and there is no sudo: $*" "run it as root: su -c '$PWD/scripts/provision.sh --user $user'"
    fi
}

as_user() {
    if [ "$me" = "$user" ]; then
        "$@"
    else
        runuser -u "$user" -- env -u XDG_CACHE_HOME -u XDG_DATA_HOME -u XDG_RUNTIME_DIR HOME="$home" "$@"
    fi
}

begun=$(date +%s)
step() { say "[$(($(date +%s) - begun)) s] $*"; }

# -- Debian packages --------------------------------------------------------------------------------------------------
ID='' VERSION_ID='' VERSION_CODENAME='' PRETTY_NAME=''
# shellcheck source=/dev/null
[ ! -r /etc/os-release ] || . /etc/os-release
step "${PRETTY_NAME:-an unknown Linux}, $(uname -m), for user $user"
case $ID-$VERSION_ID in
debian-1[23]* | ubuntu-2[4-9]*) ;;
*) say "tried on Debian 13, 12 and Ubuntu 24.04 only; going on" ;;
esac
case $VERSION_CODENAME in
bookworm | jammy) fuse=libfuse2 ;;
*) fuse=libfuse2t64 ;;
esac
wanted="ca-certificates python3 python3-venv mmdebstrap debian-archive-keyring e2fsprogs xfsprogs fio fuse3 iperf3"
wanted="$wanted iproute2 kmod openssh-client procps util-linux $fuse"
command -v apt-get >/dev/null 2>&1 || die "no apt-get: this script knows Debian and Ubuntu" \
    "install by hand what your distribution calls these, then scripts/demo.sh: $wanted"
missing=
for package in $wanted; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
if [ -n "$missing" ]; then
    step "Debian packages:$missing"
    apt="as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600"
    $apt update >&2 || die "apt-get update failed" "is the mirror in /etc/apt/sources.list in reach?"
    # shellcheck disable=SC2086  # a list of package names
    $apt install -y --no-install-recommends $missing >&2 || die "apt-get could not install:$missing" "see above"
else
    step "Debian packages: all there"
fi

if [ "$user" != root ] && getent group kvm >/dev/null && ! id -nG "$user" | tr ' ' '\n' | grep -qx kvm; then
    step "user $user joins the group kvm; it counts from the next login on"
    as_root usermod --append --groups kvm "$user"
fi

# -- emucsd -----------------------------------------------------------------------------------------------------------
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
export EMUCSD_VENV="$VENV"
step "emucsd in $VENV"
[ -d "$VENV" ] || as_user mkdir -p "$VENV" 2>/dev/null || as_root install -d -o "$user" "$VENV"
# shellcheck disable=SC2016  # expanded by the user's shell
as_user sh -euc '. scripts/environment.sh; [ -w . ] || die "user $2 cannot write $PWD" "chown -R $2 $PWD"; setup "$1"' \
    provision "$extras" "$user"
if [ "$(readlink /usr/local/bin/emucsd 2>/dev/null)" != "$VENV/bin/emucsd" ]; then
    as_root ln -sf "$VENV/bin/emucsd" /usr/local/bin/emucsd
    step "/usr/local/bin/emucsd is a link to it"
fi

# -- QEMU and images --------------------------------------------------------------------------------------------------
if [ "$qemu" = private ]; then
    for target in x86_64 aarch64; do
        step "a QEMU for $target that can attach drives"
        as_user "$VENV/bin/python" -m emucsd_femu qemu --target "$target" >&2 ||
            die "no QEMU for $target" "see above; --qemu none leaves it out"
    done
fi
case $images in
small) set -- host-small isp-small ;;
full) set -- host isp ;;
none) set -- ;;
esac
if [ $# -gt 0 ]; then
    step "images: $* (minutes)"
    as_user "$VENV/bin/python" -m emucsd_images build "$@" >&2 ||
        die "the images could not be built" "see above; --images none leaves them out"
fi

# -- the service ------------------------------------------------------------------------------------------------------
if [ -z "$up" ]; then
    case $images in
    small) up=--small ;;
    none) up="disk0 --drive-only" ;;
    esac
fi
unit=/etc/systemd/system/emucsd-testbed.service
unit_text() { # sockets of running drives are where the user's own shells look for them, whether or not they are logged in
    cat <<END
[Unit]
Description=emucsd testbed of user $user
Documentation=file://$PWD/docs/vagrant.md
Requires=user-runtime-dir@$uid.service
After=user-runtime-dir@$uid.service network.target

[Service]
Type=oneshot
RemainAfterExit=yes
User=$user
WorkingDirectory=~
Environment=XDG_RUNTIME_DIR=/run/user/$uid
ExecStart=$VENV/bin/emucsd up $up
ExecStop=$VENV/bin/emucsd down --all
TimeoutStartSec=30min
TimeoutStopSec=3min

[Install]
WantedBy=multi-user.target
END
}
if [ -n "$service" ]; then
    command -v systemctl >/dev/null 2>&1 || die "--service: no systemd here" "leave it out and run: emucsd up $up"
    step "service: emucsd up $up"
    if [ "$(cat "$unit" 2>/dev/null)" != "$(unit_text)" ]; then
        unit_text | as_root tee "$unit" >/dev/null
        [ ! -d /run/systemd/system ] || as_root systemctl daemon-reload
    fi
    as_root install -d /var/lib/systemd/linger
    as_root touch "/var/lib/systemd/linger/$user" # /run/user/$uid outlives the last login
    as_root systemctl --quiet enable emucsd-testbed.service
    if [ -d /run/systemd/system ]; then
        step "compiling the firmware (half a minute; some ten where this machine is emulated)"
        as_user "$VENV/bin/python" -m emucsd_femu compile >&2 || die "the firmware could not be compiled" "see above"
        step "starting the service"
        if ! as_root systemctl start emucsd-testbed.service; then
            as_root journalctl --no-pager -n 40 -u emucsd-testbed.service >&2 || true
            die "the testbed did not come up" "see above; again: systemctl restart emucsd-testbed"
        fi
        as_user env XDG_RUNTIME_DIR="/run/user/$uid" "$VENV/bin/emucsd" status >&2 || true
    fi
fi

# -- what there is now ------------------------------------------------------------------------------------------------
if [ -n "$doctor" ]; then
    step "what this machine can run"
    as_user "$VENV/bin/emucsd" doctor || say "not everything; see above"
fi
if [ -n "$service" ]; then
    step "done. Next: emucsd status, emucsd ssh host, systemctl status emucsd-testbed"
else
    step "done. Next: emucsd up $up"
fi
