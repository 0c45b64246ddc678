#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# What guests cost: time to make and to end one, memory, network, disk. Prints `BENCH <row> <number>`; a row may come
# several times. `cargo xtask bench domains` runs it in Domain 0 and knows the units.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/bench.sh"

# Milliseconds since the first argument, an EPOCHREALTIME without its point.
since() { echo $(((${EPOCHREALTIME/./} - $1) / 1000)); }

# boot <row> <name>: creates a guest; the time to the first line of its /init, which the kernel announces. Reading the
# log sleeps until there is something to read.
boot() {
    local start=${EPOCHREALTIME/./}
    create "$2" >/dev/null 2>&1 &
    grep -qm 1 'Run /init' < <(exec tail -n +1 -F "$(console_log "$2")" 2>/dev/null)
    row "$1" "$(since "$start")"
    wait $!
    # shellcheck disable=SC2046 # several
    kill $(jobs -p) 2>/dev/null
    ready "$2"
}

# end <row> <name>
end() {
    local start=${EPOCHREALTIME/./}
    xl destroy "$2"
    row "$1" "$(since "$start")"
    within 20 gone "$2"
}

# own <name>: KiB of memory that are the guest's.
own() {
    PYTHONPATH=/usr/lib/xen-4.17/lib/python python3 -c "
from xen.lowlevel.xc import xc
print(xc().domain_getinfo($(xl domid "$1"), 1)[0]['mem_kb'])"
}

# cost <row> <name>: memory that the hypervisor has less once the guest idles, beyond the guest's own.
cost() {
    local before
    before=$(free_memory)
    create "$2" >/dev/null 2>&1
    ready "$2"
    sleep 1
    row "$1" $((before - $(free_memory) - $(own "$2")))
}

rounds="1 2 3"
time=4
if once; then
    rounds=1
    time=1
fi

config plain
config other
for _ in $rounds; do
    boot create plain
    end destroy plain
done
config large "memory = 1024"
for _ in $rounds; do
    create large >/dev/null 2>&1
    ready large
    end destroy-1GiB large
done

create plain >/dev/null 2>&1
ready plain
cost memory other
xl destroy plain
xl destroy other
within 20 alone

networked first 12
networked second 13
create first >/dev/null 2>&1
ready first
cost memory-network second
xl destroy first
xl destroy second
within 20 alone

# In memory, so that it is not the machine's disk that is measured.
truncate -s 64M /tmp/disk.img
dd if=/dev/zero of=/tmp/disk.img bs=64k count=1024 conv=notrunc 2>/dev/null
networked guest 14 "disk = [ 'file:/tmp/disk.img,xvda,w' ]"
boot create-devices guest
fetch guest pxio
type_in guest '/tmp/pxio serve 9000 &'
sleep 1
measure() { ask guest "/tmp/pxio $1 /dev/xvda $time" 120 | tr -d '\n'; }
for _ in $rounds; do
    row tcp-to-guest "$(/run/philoxen/pxio send 192.168.90.14:9000 $time)"
    row tcp-to-dom0 "$(/run/philoxen/pxio receive 192.168.90.14:9000 $time)"
    row block-read "$(measure read)"
    row block-write "$(measure write)"
    row block-random-read "$(measure random-read)"
    row block-random-write "$(measure random-write)"
done
end destroy-devices guest
finish
