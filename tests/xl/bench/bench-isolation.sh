#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# The paper's performance isolation: four guests of equal weight, two of which work, a database and a web server, and two
# of which do as they please. Prints `BENCH <row> <number>`; `cargo xtask bench isolation` runs it in Domain 0 and knows the
# units.
#
# There is one processor for all, which the two that work want all of: a guest that computes takes its share however well
# it behaves. What they do beside two that only compute is therefore what they are entitled to, and what they do less beside
# a disk hog, beside a fork bomb with a memory hog, and beside both (the paper's case) is lost.
# Those that do not take part in a measurement are paused. The database's clients are in its guest. The web server's are in
# Domain 0, beside the back ends that work for all: it has twice a guest's weight, or the clients, who would be elsewhere,
# would lose what the disk hog's back end takes.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/bench.sh"

seconds=10
rounds="1 2 3"
if once; then
    seconds=5
    rounds=1
fi

# server <name> <number> <disk> <memory>: a guest that has the servers' root file system.
server() {
    networked "$1" "$2" "extra = 'console=hvc0 root=/dev/xvda ip=192.168.90.$2/24'" "memory = $4" \
        "disk = [ 'phy:/dev/$3,xvda,w' ]"
    create "$1" >/dev/null 2>&1
    ready "$1" || fail boot "$1"
}

# less <reference> <value>: by how many per cent.
less() { awk -v reference="$1" -v value="$2" 'BEGIN { printf "%.2f", 100 * (1 - value / reference) }'; }

# beside <row> <guest> <guest>: what the database and the web server do beside two guests; to $database and $web, per second.
beside() {
    local row=$1 guest
    shift
    for guest in "$@"; do
        xl unpause "$guest"
    done
    sleep 3
    ask db "database work $seconds" 300 >/tmp/database &
    chroot /mnt wrk --threads 1 --connections 4 --duration "${seconds}s" http://192.168.90.22:8080/page >/tmp/web
    wait $!
    for guest in "$@"; do
        xl pause "$guest"
    done
    database=$(tr -d '\n' </tmp/database)
    web=$(awk '$1 == "Requests/sec:" { print $2 }' /tmp/web)
    row "db-$row" "$database"
    row "web-$row" "$web"
}

mount -o ro /dev/vdf /mnt
xl sched-credit2 -d Domain-0 -w 512
for index in 1 2; do
    config "compute$index"
    create "compute$index" >/dev/null 2>&1
    ready "compute$index" || fail boot "compute$index"
    type_in "compute$index" 'while :; do :; done'
    xl pause "compute$index"
done
server disk 23 vdd 128
type_in disk disk-hog
sleep 2
xl pause disk
server fork 24 vde 128
type_in fork bombs
sleep 2
xl pause fork
server web 22 vdc 128
ask web web 60 || fail start web
server db 21 vdb 256
ask db "database start" 300 || fail start db

for _ in $rounds; do
    beside benign compute1 compute2
    benign_database=$database benign_web=$web
    for case in "disk disk compute2" "fork compute1 fork" "both disk fork"; do
        # shellcheck disable=SC2086 # words
        beside $case
        row "loss-db-${case%% *}" "$(less "$benign_database" "$database")"
        row "loss-web-${case%% *}" "$(less "$benign_web" "$web")"
    done
done
finish
