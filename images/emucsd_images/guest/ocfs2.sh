#!/bin/sh
# OCFS2 on a drive's shared namespace, for the machines of one testbed.
#
#   emucsd-ocfs2 mkfs DEVICE [--force]    make the filesystem (one machine does it, once); --force: over another one
#   emucsd-ocfs2 mount DEVICE FOLDER      join the cluster and mount
#   emucsd-ocfs2 umount FOLDER            unmount, and leave the cluster when it was the last one
#   emucsd-ocfs2 keep DEVICE FOLDER       as a service: wait for the network, make the filesystem where the device is
#                                         blank (node 0 does), mount, stay; DEVICE may be a drive's PCI address
#   emucsd-ocfs2 join | leave             the cluster alone
#
# Needs /etc/ocfs2/cluster.conf (the testbed brings it). Times are taken from the environment when the cluster is joined,
# and must be the same on all machines:
#   O2CB_HEARTBEAT_THRESHOLD   a node that was silent for (this - 1) * 2 s is dead (16: 30 s)
#   O2CB_IDLE_TIMEOUT_MS       a connection that was silent for this long is lost (30000)
set -eu
PATH=/usr/sbin:/usr/bin
config=/sys/kernel/config
conf=/etc/ocfs2/cluster.conf
threshold=${O2CB_HEARTBEAT_THRESHOLD:-16}
idle=${O2CB_IDLE_TIMEOUT_MS:-30000}
slots=8

fail() {
    echo "emucsd-ocfs2: $*" >&2
    exit 1
}

usage() {
    sed -n '3,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

cluster() {
    [ -e "$conf" ] || fail "$conf is not there: this testbed has no cluster"
    name=$(awk '/^cluster:/ { inside = 1 } /^node:/ { inside = 0 } inside && $1 == "name" { print $3; exit }' "$conf")
    [ -n "$name" ] || fail "$conf names no cluster"
}

own() { # KEY: of this machine's node in cluster.conf
    awk -v key="$1" -v host="$(hostname)" '
        function tell() { if (values["name"] == host) print values[key] }
        /^(node|cluster):/ { tell(); split("", values) }
        $2 == "=" { values[$1] = $3 }
        END { tell() }' "$conf"
}

set_time() { # NAME VALUE: an attribute can't be changed once a node is connected
    attribute=$config/cluster/$name/$1
    [ "$(cat "$attribute")" = "$2" ] || echo "$2" >"$attribute" || fail "$attribute can't be set to $2"
}

join() {
    cluster
    for module in configfs ocfs2_stackglue ocfs2_stack_o2cb ocfs2_dlm ocfs2_dlmfs ocfs2; do
        modprobe "$module" || fail "no kernel module $module"
    done
    mountpoint -q "$config" || mount -t configfs configfs "$config"
    mountpoint -q /dlm || mount -t ocfs2_dlmfs ocfs2_dlmfs /dlm
    echo o2cb >/sys/fs/ocfs2/cluster_stack
    [ -d "$config/cluster/$name" ] && return
    o2cb register-cluster "$name"
    set_time idle_timeout_ms "$idle"
    set_time keepalive_delay_ms "$((idle / 5))"
    set_time reconnect_delay_ms 500
    set_time heartbeat/dead_threshold "$threshold"
}

leave() {
    cluster
    ! mountpoint -q /dlm || umount /dlm
    [ ! -d "$config/cluster/$name" ] || o2cb unregister-cluster "$name"
}

make() { # DEVICE [-F]
    join
    # it asks before it overwrites a filesystem
    answer=n
    [ -z "${2:-}" ] || answer=y
    echo "$answer" | mkfs.ocfs2 -q -N "$slots" --cluster-stack=o2cb "--cluster-name=$name" -L emucsd ${2:+"$2"} "$1" ||
        fail "no filesystem was made on $1; one that is there is only overwritten with --force"
}

attach() { # DEVICE FOLDER
    join
    mkdir -p "$2"
    mount.ocfs2 "$1" "$2"
}

find_disk() { # DEVICE: the block device of that name, or of the drive with that PCI address. Which of them is nvme0 is chance,
    # and a disk with several paths has the number of its subsystem, not of its controller.
    case $1 in
    /*) disk=$1 ;;
    *)
        controller=$(ls "/sys/bus/pci/devices/$1/nvme" 2>/dev/null) || return 1
        disk=
        for block in /sys/block/nvme*n1; do
            if [ -e "$block/device/$controller" ] || [ "$(basename "$(readlink -f "$block/device")")" = "$controller" ]; then
                [ "$(cat "$block/hidden")" = 1 ] || disk=/dev/${block##*/}
            fi
        done
        ;;
    esac
    [ -b "$disk" ]
}

blank() { # DEVICE: tables of emucsd's, or anything else that blkid does not know, is nothing to overwrite
    [ -z "$(blkid -p -o value "$1")" ] && cmp -s -n 4194304 "$1" /dev/zero
}

keep() { # DEVICE FOLDER
    cluster
    address=$(own ip_address)
    number=$(own number)
    [ -n "$address" ] || fail "$conf has no node $(hostname)"
    until ip -o address | grep -qF " $address/" && find_disk "$1"; do
        sleep 1
    done
    told=
    until [ "$(blkid -p -s TYPE -o value "$disk")" = ocfs2 ]; do
        if [ "$number" -eq 0 ] && blank "$disk"; then
            make "$disk"
        else
            [ -n "$told" ] || echo "$disk holds no ocfs2; only a blank one gets a filesystem by itself"
            told=1
            sleep 2
        fi
    done
    mountpoint -q "$2" || attach "$disk" "$2"
    echo "$disk is mounted on $2"
    exec sleep infinity
}

[ $# -gt 0 ] || usage
action=$1
shift
case $action:$# in
mkfs:1) make "$1" ;;
mkfs:2)
    [ "$2" = --force ] || usage
    make "$1" -F
    ;;
mount:2) attach "$1" "$2" ;;
umount:1)
    umount "$1"
    grep -q " ocfs2 " /proc/mounts || leave
    ;;
keep:2) keep "$1" "$2" ;;
join:0) join ;;
leave:0) leave ;;
*) usage ;;
esac
