#!/bin/busybox sh
# First process of the smoke test's guest: drives /dev/nvme0n1 with the kernel's own driver and says what it finds.
# Each line for the test is "SMOKE <seconds since boot> <text>". /pattern is what the disk gets, or has; "smoke=write" on
# the kernel's command line writes it and goes through every kind of reset, "smoke=read" only reads, "smoke=busy" writes
# elsewhere until it is killed.
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox --install -s /bin
export PATH=/bin
DISK=/dev/nvme0n1
BYTES=$(stat -c %s /pattern)

say() { echo "SMOKE $(cut -d' ' -f1 /proc/uptime) $*"; }
die() { say "FAILED $*"; sync; poweroff -f; }

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
checked() { # checked WHAT: the first BYTES of the disk are the pattern
    cold
    head -c "$BYTES" "$DISK" > /tmp/found || die "$1: read"
    cmp /pattern /tmp/found || die "$1: the data differ"
    say "$1 equal"
}

await 20 is_disk || die "no $DISK: $(ls /sys/class/nvme 2>&1)"
say "probed: model $(cat /sys/class/nvme/nvme0/model | tr -s ' ') size $(blockdev --getsize64 $DISK) block $(blockdev --getss $DISK)"
say "queues $(cat /sys/class/nvme/nvme0/queue_count) interrupts $(grep -c nvme0q /proc/interrupts)"

case $(cat /proc/cmdline) in
*smoke=write*)
    dd if=/pattern of=$DISK bs=64k conv=fsync 2>/dev/null || die write
    say "wrote $BYTES"
    ;;
esac
checked first
case $(cat /proc/cmdline) in
*smoke=busy*)
    say "busy"
    while dd if=/pattern of=$DISK bs=64k seek=2048 conv=fsync 2>/dev/null; do :; done
    die "busy write"
    ;;
esac
dd if=$DISK of=/tmp/found bs=4096 count=256 iflag=direct 2>/dev/null || die "direct read"
say "256 direct reads: md5 $(md5sum /tmp/found | cut -d' ' -f1)"

finish() {
    say "done"
    poweroff -f
}
case $(cat /proc/cmdline) in
*smoke=read*)
    [ "$(dd if=$DISK bs=4096 skip=20000 count=1 2>/dev/null | head -c 4)" = tail ] || die "the second write is not there"
    finish
    ;;
esac

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

grep nvme0q /proc/interrupts | while read -r line; do say "interrupts $line"; done
echo 1 > "$DEVICE/remove"
echo 1 > /sys/bus/pci/rescan
await 20 is_disk || die "no $DISK after remove and rescan"
checked rescan

blkdiscard -o $((64 << 20)) -l $((1 << 20)) $DISK || die discard
echo tail | dd of=$DISK bs=4096 seek=20000 conv=sync,fsync 2>/dev/null || die "second write"
finish
