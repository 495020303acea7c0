#!/bin/busybox sh
# The emulated host's first program: brings KVM up, runs the scenario, powers off.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=90% tmp /tmp
exec </dev/console >/dev/console 2>&1
stty -echo -onlcr
ip link set lo up
for module in $(cat /modules/order); do
    insmod /modules/"$module" || echo "HOST cannot load $module"
done
[ -c /dev/kvm ] || echo "HOST has no /dev/kvm"
echo "HOST up"
# Whoever listens takes a host for dead that no longer says this. Each processor has its part in it: one that
# stands still leaves the other talking.
while sleep 5; do
    for processor in 0 1; do taskset "$((1 << processor))" true; done
    echo "HOST alive"
done &
export PATH=/bin FERRY_SCENARIO_FERRY=/bin/ferry FERRY_SCENARIO_BZIMAGE=/guest/bzImage
export FERRY_SCENARIO_VMLINUX=/guest/vmlinux FERRY_SCENARIO_INITRD=/guest/initrd.cpio
export FERRY_SCENARIO_ROOT=/guest/root.packed FERRY_SCENARIO_BARE_METAL=/guest/bare-metal
# shellcheck disable=SC2046 # one word of the scenario on each line
/bin/ferry-scenario $(cat /scenario) || echo "SCENARIO ended with $?"
sync
poweroff -f
