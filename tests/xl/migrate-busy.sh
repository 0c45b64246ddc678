#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# A busy guest with two vCPUs that both write moves to a new domain on the same host, twice: its memory, its disk and its
# connections must not notice.

. "$(dirname "$0")/lib.sh"

# flows <lines>: whether so many lines came back by the connection since; shows both of its ends if not. The sender
# of what got lost tries again after as long as the guest was away.
flows() {
    within 120 eval "[ \$(wc -l </tmp/came-back) -gt $1 ]" && return
    wc -l /tmp/came-back
    cat /proc/net/tcp
    ask busy 'cat /proc/net/tcp /proc/loadavg'
    return 1
}

# in_order <file> <last>: whether the file holds the numbers 1 to <last>, a line each.
in_order() { cmp "$1" <(seq "$2"); }

disk=/var/lib/xen/images/guest.img
truncate -s 64M $disk
networked busy 20 "vcpus = 2" "disk = [ 'file:$disk,xvda,w' ]"
check create-busy create busy
check busy-boots ready busy
check fs ask busy 'mke2fs /dev/xvda >/dev/null && mount -t ext4 /dev/xvda /mnt' 180
# On each vCPU an application whose memory changes all the time, each time to what it can check afterwards.
for vcpu in 1 2; do
    type_in busy "taskset $vcpu awk -v vcpu=$vcpu"' '\''BEGIN { n = 5000; rounds = "/tmp/rounds-" vcpu; while ((getline x <"/tmp/stop") < 0) {
 for (i = 0; i < n; i++) a[i] = k + i
 for (i = 0; i < n; i++) if (a[i] != k + i) { print "bad", i, a[i], k >"/tmp/bad"; exit }
 k++; print k >>rounds; close(rounds) } }'\'' &'
done
# Processes that share pages with their children until one of them writes.
type_in busy 'i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); x=$(j=$i; i=child; echo $j); [ $x = $i ] || echo $x $i >>/tmp/bad; sleep 0.1; done &'
# Files in memory and on disk, written on either.
type_in busy 'f=0; while [ ! -e /tmp/stop ]; do f=$(((f + 1) % 16)); for d in /tmp /mnt; do
 taskset $((f % 2 + 1)) dd if=/dev/urandom of=$d/$f bs=64k count=2 2>/dev/null; md5sum $d/$f >$d/$f.sum; sleep 0.1; done; done &'
# What goes in comes back, in the same order, by one connection.
type_in busy 'nc -ll -p 7 -e /bin/cat &'
check date test "$(ask busy 'date +%Y')" -ge 2024
check connects within 30 bash -c '</dev/tcp/192.168.90.20/7'
(for i in $(seq 100000); do
    [ ! -e /tmp/enough ] || { echo "$i" >/tmp/enough; break; }
    echo "$i"
    sleep 0.02
done) | nc 192.168.90.20 7 >/tmp/came-back &
for round in 1 2; do
    before=$(xl domid busy)
    start=${EPOCHREALTIME/./}
    check migrate-busy-$round migrate busy
    echo "migration $round of the busy guest: $(((${EPOCHREALTIME/./} - start) / 1000)) ms"
    check busy-moved-$round moved busy "$before"
    lines=$(wc -l </tmp/came-back)
    check connection-lives-$round flows $((lines + 20))
    check nothing-bad-$round ask busy '[ ! -e /tmp/bad ]' 180
done
for vcpu in 1 2; do
    check works-$vcpu ask busy "old=\$(wc -l </tmp/rounds-$vcpu); sleep 3; [ \$(wc -l </tmp/rounds-$vcpu) -gt \$old ]" 180
done
touch /tmp/enough
check writer-ends within 60 grep -q . /tmp/enough
last=$(($(cat /tmp/enough) - 1))
check connection-is-whole within 30 in_order /tmp/came-back $last
echo "connection: $last lines there and back"
ask busy 'touch /tmp/stop; sleep 3; rm /tmp/stop' >/dev/null
check memory-is-right ask busy '[ ! -e /tmp/bad ] && cat /tmp/[0-9]*.sum | md5sum -c' 180
check disk-is-right ask busy 'cat /mnt/[0-9]*.sum | md5sum -c && umount /mnt && mount -t ext4 /dev/xvda /mnt && cat /mnt/[0-9]*.sum | md5sum -c' 180
check ping ping -c 1 -W 2 192.168.90.20
check destroy xl destroy busy
check nothing-left within 10 alone
finish
