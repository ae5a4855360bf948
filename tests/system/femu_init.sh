#!/bin/busybox sh
# First process of the FEMU test's guest: binds the drive without a class by its ids, then looks at every NVMe disk.
# Each line for the test is "FEMU <text>".
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox --install -s /bin
export PATH=/bin

say() { echo "FEMU $*"; }
await() { # await SECONDS COMMAND...: until the command succeeds
    left=$(($1 * 10)); shift
    until "$@" 2>/dev/null; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        usleep 100000
    done
}
of() { # of SLOT: the disk of the controller in this slot of the root bus
    name=$(ls "/sys/bus/pci/devices/0000:00:$1.0/nvme" 2>/dev/null) || return 1
    for disk in /dev/"$name"n1 /dev/"$name"c*n1; do [ ! -b "$disk" ] || { echo "$disk"; return; }; done
    return 1
}

say "class $(cat /sys/bus/pci/devices/0000:00:10.0/class)"
await 20 of 18 >/dev/null || say "no disk of FEMU's"
if of 10 >/dev/null; then say "bound before it was told"; fi
echo "1d1d 1f1f" >/sys/bus/pci/drivers/nvme/new_id || say "new_id refused"
await 20 of 10 >/dev/null || say "no disk of ours"
for slot in 10 18; do
    disk=$(of $slot) && say "slot $slot: $(blockdev --getsize64 "$disk") bytes"
done
ours=$(of 10)
dd if=/dev/urandom of=/tmp/pattern bs=64k count=32 2>/dev/null
dd if=/tmp/pattern of="$ours" bs=64k conv=fsync 2>/dev/null || say "write failed"
echo 3 >/proc/sys/vm/drop_caches
dd if="$ours" of=/tmp/found bs=64k count=32 2>/dev/null
cmp /tmp/pattern /tmp/found && say "read back equal"
theirs=$(of 18)
dd if="$theirs" of=/tmp/found bs=64k count=32 2>/dev/null && say "FEMU's read"
say "done"
poweroff -f
