#!/usr/bin/busybox sh
# What init runs before it ends every process: filesystems first, as a shared one needs the network to be left in order.
export PATH=/usr/sbin:/usr/bin
echo "EMUCSD stage stop" >/dev/console
# the deepest first; a filesystem in use, or one whose network is gone, must not stop the machine from stopping
for point in $(awk '$1 ~ "^/dev/" && $2 != "/" && $3 != "devtmpfs" { print $2 }' /proc/mounts | tac); do
    timeout 20 umount "$point" || echo "EMUCSD error: $point is still mounted" >/dev/console
done
for file in /run/keep-*; do
    [ -e "$file" ] && kill "$(cat "$file")"
done
sync
