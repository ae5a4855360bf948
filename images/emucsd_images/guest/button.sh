#!/usr/bin/busybox sh
# button DEVICE: the first event of an input device that has a power key switches the machine off.
# Other input devices of an emulated machine have no events.
head -c 24 "$1" >/dev/null && exec /usr/sbin/poweroff
exec sleep 1000000000
