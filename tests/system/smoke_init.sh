#!/bin/busybox sh
# First process of the smoke test's guest: drives /dev/nvme0n1 with the kernel's own driver and says what it finds.
# Each line for the test begins with SMOKE. "smoke=write" on the kernel's command line writes first, "smoke=read" only reads.
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox --install -s /bin
export PATH=/bin
DISK=/dev/nvme0n1
BYTES=$((4 << 20))

say() { echo "SMOKE $*"; }
die() { say "FAILED $*"; sync; poweroff -f; }
uptime_of() { cut -d' ' -f1 /proc/uptime; }

await() { # await SECONDS COMMAND...: until the command succeeds
    left=$(($1 * 10)); shift
    until "$@" 2>/dev/null; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        usleep 100000
    done
}
is_disk() { [ -b "$DISK" ]; }
is_live() { [ "$(cat /sys/class/nvme/nvme0/state)" = live ]; }
cold() { sync; echo 3 > /proc/sys/vm/drop_caches; }
pattern() { # the same bytes each time: numbered lines
    seq 1 2000000 | head -c "$BYTES"
}
checked() { # checked WHAT: the first BYTES of the disk are the pattern
    cold
    found=$(head -c "$BYTES" "$DISK" | md5sum | cut -d' ' -f1)
    [ "$found" = "$WANTED" ] || die "$1: read $found, wrote $WANTED"
    say "$1 equal $found"
}

await 20 is_disk || die "no $DISK: $(ls /sys/class/nvme 2>&1)"
say "probed $(uptime_of) s: model $(cat /sys/class/nvme/nvme0/model | tr -s ' ') size $(blockdev --getsize64 $DISK) block $(blockdev --getss $DISK)"
say "queues $(cat /sys/class/nvme/nvme0/queue_count) interrupts $(grep -c nvme0q /proc/interrupts)"
WANTED=$(pattern | md5sum | cut -d' ' -f1)

case $(cat /proc/cmdline) in
*smoke=write*)
    pattern | dd of=$DISK bs=64k conv=fsync 2>/dev/null || die write
    say "wrote $BYTES"
    ;;
esac
checked first
dd if=$DISK of=/tmp/one bs=4096 skip=3 count=1 iflag=direct 2>/dev/null || die "direct read"
pattern | dd bs=4096 skip=3 count=1 2>/dev/null | cmp - /tmp/one || die "direct read differs"

echo 1 > /sys/class/nvme/nvme0/reset_controller || die reset
await 20 is_live || die "after reset: $(cat /sys/class/nvme/nvme0/state)"
echo 1 > /sys/class/nvme/nvme0/rescan_controller
checked reset

DEVICE=$(readlink -f /sys/class/nvme/nvme0/device)
if [ -w "$DEVICE/reset" ]; then
    echo 1 > "$DEVICE/reset" || die "function level reset"
    await 20 is_live || die "after function level reset: $(cat /sys/class/nvme/nvme0/state)"
    checked flr
fi

echo 1 > "$DEVICE/remove"
echo 1 > /sys/bus/pci/rescan
await 20 is_disk || die "no $DISK after remove and rescan"
checked rescan

case $(cat /proc/cmdline) in
*smoke=write*)
    blkdiscard -o $((64 << 20)) -l $((1 << 20)) $DISK || die discard
    echo tail | dd of=$DISK bs=4096 seek=20000 conv=sync,fsync 2>/dev/null || die "second write"
    ;;
esac
[ "$(dd if=$DISK bs=4096 skip=20000 count=1 2>/dev/null | head -c 4)" = tail ] || die "second write is not there"
grep nvme0q /proc/interrupts | tr -s ' ' | sed 's/^/SMOKE irq/'
say "done $(uptime_of) s"
poweroff -f
