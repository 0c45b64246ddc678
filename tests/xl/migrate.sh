#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Guests move to a new domain on the same host while they run: an idle one, and a busy one whose memory, disk and
# connections must not notice; receivers that fail leave the guest where it is.

. "$(dirname "$0")/lib.sh"

# migrate <name> [command of the receiver]: moves a guest. The receiver is a command, not another host.
migrate() {
    xl migrate -s '' "$1" "${2-xl migrate-receive}" || return
    arrived[$1]=--incoming
}

# The console's log is named after the guest as it was when its domain was made.
declare -A arrived
console_log() { echo "/var/log/xen/console/guest-$1${arrived[$1]-}.log"; }

# moved <name> <domain number before>: whether the guest is another domain now.
moved() { [ "$(xl domid "$1")" != "$2" ]; }

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

config idle
check create-idle create idle
check idle-boots ready idle
ask idle 'secret=kept-42; dd if=/dev/urandom of=/tmp/data bs=64k count=256 2>/dev/null' >/dev/null
sum=$(ask idle 'md5sum </tmp/data' | md5)
for round in 1 2; do
    before=$(xl domid idle)
    check migrate-idle-$round migrate idle
    check idle-moved-$round moved idle "$before"
    check idle-remembers-$round grep -q kept-42 <<<"$(ask idle 'echo $secret')"
    check idle-memory-$round test "$(ask idle 'md5sum </tmp/data' | md5)" = "$sum"
    check idle-time-$round ask idle 'sleep 1'
done
# The receiver gets part of the memory and no more.
refuse cut-short 'Migration failed' migrate idle 'head -c 20000000 | xl migrate-receive'
check idle-stays ask idle 'echo still here'
# The receiver has everything, and is cut off in the middle of saying so: no other process may hold its way to the sender.
cat >/tmp/cut-off <<'EOF'
exec 4<&0
exec dd bs=1 count=60 2>/dev/null < <(exec xl migrate-receive <&4)
EOF
refuse not-heard 'Migration failed' migrate idle 'exec bash /tmp/cut-off'
check idle-goes-on ask idle 'sleep 1 && md5sum </tmp/data'
check one-idle within 30 eval '[ "$(xl list | grep -c idle)" = 1 ]'
check migrate-after-failures migrate idle
check idle-memory-at-last test "$(ask idle 'md5sum </tmp/data' | md5)" = "$sum"
check destroy-idle xl destroy idle

disk=/var/lib/xen/images/guest.img
truncate -s 64M $disk
networked busy 20 "disk = [ 'file:$disk,xvda,w' ]"
check create-busy create busy
check busy-boots ready busy
check fs ask busy 'mke2fs /dev/xvda >/dev/null && mount -t ext4 /dev/xvda /mnt' 180
# An application's memory that changes all the time, each time to what it can check afterwards.
type_in busy 'awk '\''BEGIN { n = 5000; while ((getline x <"/tmp/stop") < 0) {
 for (i = 0; i < n; i++) a[i] = k + i
 for (i = 0; i < n; i++) if (a[i] != k + i) { print "bad", i, a[i], k >"/tmp/bad"; exit }
 k++; print k >"/tmp/rounds"; close("/tmp/rounds") } }'\'' &'
# Processes that share pages with their children until one of them writes.
type_in busy 'i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); x=$(j=$i; i=child; echo $j); [ $x = $i ] || echo $x $i >>/tmp/bad; sleep 0.1; done &'
# Files in memory and on disk.
type_in busy 'f=0; while [ ! -e /tmp/stop ]; do f=$(((f + 1) % 16)); for d in /tmp /mnt; do
 dd if=/dev/urandom of=$d/$f bs=64k count=2 2>/dev/null; md5sum $d/$f >$d/$f.sum; sleep 0.1; done; done &'
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
check works ask busy 'old=$(cat /tmp/rounds); sleep 3; [ $(cat /tmp/rounds) -gt $old ]' 180
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
