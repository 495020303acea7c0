#!/bin/busybox sh
# The guest's first program. ferry.do= says what to do: root (go on to the disk), report (say what is
# there), poweroff, reboot, panic or triple (end that way).
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
task=root
for word in $(cat /proc/cmdline); do
    case $word in ferry.do=*) task=${word#ferry.do=} ;; esac
done
for module in $(cat /modules/order); do
    insmod /modules/"$module" || echo "FAIL cannot load $module"
done
echo "UP cpus=$(grep -c ^processor /proc/cpuinfo) mem_kib=$(awk '/MemTotal/{print $2}' /proc/meminfo) clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
case $task in
    report)
        for disk in /sys/block/vd*; do
            [ -e "$disk" ] || continue
            echo "BLOCK name=${disk##*/} sectors=$(cat "$disk"/size) ro=$(cat "$disk"/ro) serial=$(cat "$disk"/serial) queues=$(ls "$disk"/mq | wc -l) cache=$(cat "$disk"/queue/write_cache | tr -d ' ') discard=$(cat "$disk"/queue/discard_max_bytes) zeroes=$(cat "$disk"/queue/write_zeroes_max_bytes)"
        done
        echo "INTERRUPTS msi=$(grep -c -i 'msi' /proc/interrupts)"
        poweroff -f ;;
    poweroff) poweroff -f ;;
    reboot) reboot -f ;;
    panic) echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger ;;
    root)
        tries=0
        until [ -b /dev/vda ] || [ $tries -ge 100 ]; do tries=$((tries + 1)); sleep 0.1; done
        mount -t ext4 /dev/vda /newroot || { echo "FAIL cannot mount the root"; poweroff -f; }
        umount /proc /sys
        mount --move /dev /newroot/dev
        exec switch_root /newroot /sbin/init ;;
    *) echo "FAIL unknown task $task"; poweroff -f ;;
esac
sleep 60
