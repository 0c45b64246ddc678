#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Whatever dies in the middle of whatever, `xl destroy` removes the domain and the host has its memory back.

. "$(dirname "$0")/lib.sh"

disk=/tmp/disk.img
truncate -s 32M $disk
networked guest 10 "disk = [ 'file:$disk,xvda,w' ]"
config plain

others() { xl list | awk 'NR > 2 { print $2 }'; }
# Also what is left by a tool that was killed before it could name its domain.
destroy_all() {
    local id
    for id in $(others); do
        xl destroy "$id" || true
    done
}
# clean <check>: nothing of any guest is left, to the page.
clean() {
    destroy_all >/tmp/output 2>&1
    check "$1-gone" within 60 alone
    regained "$1-memory" 30 "$before"
    # What the killed tool's scripts left.
    losetup -D
}
backend() { echo "/local/domain/0/backend/$1/$(xl domid guest)/$2"; }
unbind() { echo "$1-$(xl domid guest)-$2" >"/sys/bus/xen-backend/drivers/$1/unbind"; }
consoled() { "/usr/lib/xen-4.17/bin/xenconsoled" --log=all --pid-file=/run/xen/xenconsoled.pid; }

# What Domain 0 needs at most to use others' pages, it keeps: as much as it takes for a busy disk.
create guest >/dev/null 2>&1
ready guest
ask guest 'dd if=/dev/xvda of=/dev/null bs=64k; dd if=/dev/zero of=/dev/xvda bs=64k' >/dev/null
xl destroy guest
within 20 alone
sleep 2
before=$(free_memory)

for tenths in 3 8 15 25 40 60; do
    : >"$(console_log guest)"
    /usr/sbin/xl create /tmp/guest.cfg >/tmp/output 2>&1 &
    sleep "$((tenths / 10)).$((tenths % 10))"
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    clean "killed-create-$tenths"
done

for tenths in 2 10; do
    create guest >/dev/null 2>&1
    sleep "$((tenths / 10)).$((tenths % 10))"
    check "destroy-in-boot-$tenths" xl destroy guest
    clean "destroy-in-boot-$tenths"
done

# The process that waits for the guest's end is gone: what the guest does then, nobody acts on.
create guest >/dev/null 2>&1
ready guest
pkill -9 -f '^/.*xl create' || pkill -9 -x xl
type_in guest poweroff
check shut-down-alone within 60 in_state guest '*s*'
clean watcher-killed

for back in "vbd 51712" "vif 0"; do
    # shellcheck disable=SC2086 # words
    set -- $back
    create guest >/dev/null 2>&1
    check "$1-boots" ready guest
    check "$1-unbound" unbind "$1" "$2"
    clean "$1-unbound"
    create guest >/dev/null 2>&1
    check "$1-boots-again" ready guest
    check "$1-node-removed" xenstore-rm "$(backend "$1" "$2")"
    clean "$1-node-removed"
done

create guest >/dev/null 2>&1
check loop-boots ready guest
loop=$(losetup -n -O NAME -j $disk | head -n 1)
type_in guest 'dd if=/dev/xvda of=/dev/null bs=64k; dd if=/dev/zero of=/dev/xvda bs=64k count=64'
losetup -d "$loop"
rm $disk
clean loop-gone
truncate -s 32M $disk

create plain >/dev/null 2>&1
check console-boots ready plain
kill -9 "$(cat /run/xen/xenconsoled.pid)"
check destroyed-without-console xl destroy plain
consoled
clean console-killed

for tenths in 2 8; do
    create plain >/dev/null 2>&1
    ready plain
    timeout -s KILL 60 /usr/sbin/xl save plain /tmp/save >/tmp/output 2>&1 &
    sleep "$((tenths / 10)).$((tenths % 10))"
    # It may have been saved already.
    xl destroy plain >/tmp/output 2>&1
    wait $!
    rm -f /tmp/save
    clean "destroy-in-save-$tenths"
    create plain >/dev/null 2>&1
    ready plain
    /usr/sbin/xl save plain /tmp/save >/tmp/output 2>&1 &
    sleep "$((tenths / 10)).$((tenths % 10))"
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    sleep 1
    rm -f /tmp/save
    clean "killed-save-$tenths"
done

# A page that the guest granted stays mapped in a process: the domain stays too, and goes with the process.
create plain >/dev/null 2>&1
check granter-boots ready plain
id=$(xl domid plain)
mkfifo /tmp/end
python3 -c '
import fcntl, mmap, os, struct, sys
device = os.open("/dev/xen/gntdev", os.O_RDWR)
request = bytearray(struct.pack("=IIQII", 1, 0, 0, int(sys.argv[1]), 1))
fcntl.ioctl(device, ord("G") << 8 | 24 << 16, request)
index = struct.unpack_from("=Q", request, 8)[0]
page = mmap.mmap(device, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=index)
print("mapped", page[0], flush=True)
open("/tmp/end").read()' "$id" >/tmp/mapper 2>&1 &
mapper=$!
check maps-a-grant within 10 grep -q mapped /tmp/mapper
check destroy-granter xl destroy plain
sleep 2
check granter-stays grep -Eq "^[^ ]+ +$id .*d" <<<"$(xl list)"
check its-memory-is-back test "$(free_memory)" -ge $((before - 256))
kill -9 $mapper
clean granter
finish
