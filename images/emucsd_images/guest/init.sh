#!/bin/sh
# First program of a machine: load what the disk needs, mount it, copy this boot's seed in, go on from the disk.
PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
echo "EMUCSD stage initrd $(cut -d' ' -f1 /proc/uptime)" >/dev/console
while read -r module; do
    insmod "/modules/$module" || echo "EMUCSD error: module $module" >/dev/console
done </modules/order

tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 1000 ]; then
        echo "EMUCSD error: no /dev/vda" >/dev/console
        poweroff -f
    fi
    usleep 10000
done
if ! mount -t ext4 -o noatime /dev/vda /root; then
    echo "EMUCSD error: /dev/vda can't be mounted" >/dev/console
    poweroff -f
fi

# a seed that is there already is left alone: so is what somebody changed in the machine since
if [ -e /seed/etc/emucsd/seed ] && ! cmp -s /seed/etc/emucsd/seed /root/etc/emucsd/seed; then
    rm -rf /root/opt/emucsd /root/etc/emucsd
    cp -a /seed/. /root/
    echo "EMUCSD stage seed $(cut -d' ' -f1 /proc/uptime)" >/dev/console
fi
mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root /sbin/init
