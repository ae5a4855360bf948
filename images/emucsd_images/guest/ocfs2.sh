#!/bin/sh
# OCFS2 on a drive's shared namespace, for the machines of one testbed.
#
#   emucsd-ocfs2 mkfs DEVICE              make the filesystem (one machine does it, once)
#   emucsd-ocfs2 mount DEVICE FOLDER      join the cluster and mount
#   emucsd-ocfs2 umount FOLDER            unmount and leave the cluster when it was the last one
#   emucsd-ocfs2 join | leave             the cluster alone
#
# Needs /etc/ocfs2/cluster.conf (the testbed's seed brings it). Times, in the environment, before the cluster is joined:
#   O2CB_HEARTBEAT_THRESHOLD   iterations of 2 s until a silent node is dead, less one (default here 8: 14 s)
#   O2CB_IDLE_TIMEOUT_MS       silence on a connection until it is taken for lost (default here 10000)
set -eu
PATH=/usr/sbin:/usr/bin
config=/sys/kernel/config
threshold=${O2CB_HEARTBEAT_THRESHOLD:-8}
idle=${O2CB_IDLE_TIMEOUT_MS:-10000}
slots=8

fail() {
    echo "emucsd-ocfs2: $*" >&2
    exit 1
}

cluster() {
    [ -e /etc/ocfs2/cluster.conf ] || fail "/etc/ocfs2/cluster.conf is not there: this testbed has no cluster"
    name=$(awk '/^cluster:/ { inside = 1 } /^node:/ { inside = 0 } inside && $1 == "name" { print $3; exit }' \
        /etc/ocfs2/cluster.conf)
    [ -n "$name" ] || fail "/etc/ocfs2/cluster.conf names no cluster"
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
    mountpoint -q /dlm && umount /dlm
    [ -d "$config/cluster/$name" ] || return 0
    o2cb unregister-cluster "$name"
}

case ${1:-} in
mkfs)
    [ $# -eq 2 ] || fail "mkfs DEVICE"
    join
    mkfs.ocfs2 -q -F -N "$slots" --cluster-stack=o2cb "--cluster-name=$name" -L emucsd "$2" </dev/null
    ;;
mount)
    [ $# -eq 3 ] || fail "mount DEVICE FOLDER"
    join
    mkdir -p "$3"
    mount.ocfs2 "$2" "$3"
    ;;
umount)
    [ $# -eq 2 ] || fail "umount FOLDER"
    umount "$2"
    grep -q " ocfs2 " /proc/mounts || leave
    ;;
join | leave) "$1" ;;
*)
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
