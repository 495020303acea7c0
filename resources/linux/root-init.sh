#!/bin/sh
# The root file system's first program: the journal writer until the host says stop, then power-off.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/console >/dev/console 2>&1
stty -echo -onlcr
echo "ROOT mounted"
/sbin/journal-writer /data/journal || echo "FAIL the writer ended with $?"
sync
mount -o remount,ro /
echo "OFF"
poweroff -f
sleep 60
