#!/usr/bin/busybox sh
# keep NAME COMMAND...: run it again whenever it ends, later and later while it ends early. Its words go to
# /var/log/NAME.log, each end of it to the console as well.
name=$1
shift
log=/var/log/$name.log
[ "$name" = button ] && log=/dev/null
echo $$ >"/run/keep-$name-$$"
pause=1
while true; do
    read -r begun _ </proc/uptime
    "$@" >>"$log" 2>&1
    status=$?
    read -r ended _ </proc/uptime
    [ $((${ended%.*} - ${begun%.*})) -ge 30 ] && pause=1
    echo "EMUCSD service $name ended with $status; again in $pause s" >>"$log"
    echo "EMUCSD service $name ended with $status; again in $pause s: $(tail -n 2 "$log" | head -n 1)" >/dev/console
    sleep "$pause"
    pause=$((pause * 2))
    [ "$pause" -gt 30 ] && pause=30
done
