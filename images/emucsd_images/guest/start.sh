#!/usr/bin/busybox sh
# Bring a machine up: filesystems, network, modules, sshd, services. Run once by init (etc/inittab).
export PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 PYTHONPATH=/opt/emucsd HOME=/root

stage() {
    echo "EMUCSD stage $1 $(cut -d' ' -f1 /proc/uptime)" >/dev/console
}

load() {
    for module; do
        /usr/sbin/modprobe -q "$module" || echo "EMUCSD error: module $module" >/dev/console
    done
}

keep() {
    setsid /usr/lib/emucsd/keep "$@" </dev/null >/dev/null 2>&1 &
}

stage start
mount -t sysfs sys /sys
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/pts /dev/shm /run/sshd /run/lock
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
hostname -F /etc/hostname
# TCP buffers for a network whose frames are as large as it likes
sysctl -qw net.ipv4.ping_group_range="0 2147483647" kernel.printk="4 4 1 7" net.core.rmem_max=16777216 \
    net.core.wmem_max=16777216
ip link set lo up
network=none
[ -e /etc/emucsd/network ] && network=$(cat /etc/emucsd/network)
if [ "$network" = slirp ]; then
    load virtio_net
    ip address add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    ip route add default via 10.0.2.2
    echo "nameserver 10.0.2.3" >/etc/resolv.conf
fi

# a machine without a key of its own, started by hand, makes one
[ -e /etc/ssh/ssh_host_ed25519_key ] || /usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
keep sshd /usr/sbin/sshd -D -e
load nvme tun virtio_rng
stage modules
for file in /etc/emucsd/services/*; do
    name=${file##*/}
    [ -e "$file" ] && keep "${name#*-}" /usr/bin/sh "$file"
done
(
    until grep -q ":0016 00000000:0000 0A" /proc/net/tcp; do
        usleep 20000
    done
    echo "EMUCSD READY $(cut -d' ' -f1 /proc/uptime)" >/dev/console
    load evdev
    for module in button gpio_pl061 gpio_keys; do # whichever this machine has its power button on
        /usr/sbin/modprobe -q "$module"
    done
    for device in /dev/input/event*; do
        [ -e "$device" ] && keep button /usr/lib/emucsd/button "$device"
    done
) &
