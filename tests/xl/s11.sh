#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Scheduling: weights, caps, the context-switch allowance, warp, affinities, and what they do to two guests that compute.

. "$(dirname "$0")/lib.sh"

# credit2 <domain> <weight> <cap>: what xl shows.
credit2() { xl sched-credit2 | grep -Eq "^$1 +[0-9]+ +$2 +$3\$"; }

# share <seconds> [command]...: per cent of what both guests get that `one` gets, from before the command on.
share() {
    local one two seconds=$1
    shift
    one=$(tenths one)
    two=$(tenths two)
    "$@"
    sleep "$seconds"
    one=$(($(tenths one) - one))
    two=$(($(tenths two) - two))
    echo $((100 * one / (one + two)))
}

between() { [ "$3" -ge "$1" ] && [ "$3" -le "$2" ]; }

check pool grep -Eq '^Pool-0 +[0-9]+ +credit2' <<<"$(xl cpupool-list)"
allowance=$(xl sched-credit2 -s | grep -o 'ratelimit=[0-9]*' | head -n 1 | tr -dc 0-9)
check allowance-set xl sched-credit2 -s -r 2000
check allowance-read grep -q 'ratelimit=2000us' <<<"$(xl sched-credit2 -s)"
refuse allowance-bounds 'value of ratelimit|Failed|range|ratelimit' xl sched-credit2 -s -r 600000
check allowance-back xl sched-credit2 -s -r "$allowance"

for guest in one two; do
    config $guest "memory = 96"
    check "create-$guest" create $guest
done
check boots-one ready one
check boots-two ready two

check pin-hard xl vcpu-pin one 0 0
check pin-soft xl vcpu-pin one 0 - 0
check pinned grep -Eq '^one +[0-9]+ +0 +0 .* (0|all) / (0|all)$' <<<"$(xl vcpu-list one)"
check unpin xl vcpu-pin one 0 all all
check unpinned grep -Eq 'all / all$' <<<"$(xl vcpu-list one)"
check pin-both eval 'xl vcpu-pin one 0 0 && xl vcpu-pin two 0 0'

for guest in one two; do
    type_in $guest 'while :; do :; done &'
done
sleep 3
check equal-weights between 46 54 "$(share 10)"
check weight-set xl sched-credit2 -d one -w 768
check weight-read credit2 one 768 0
check unequal-weights between 71 79 "$(share 10)"
check cap-set xl sched-credit2 -d one -w 256 -c 20
check cap-read credit2 one 256 20
check capped between 16 24 "$(rate one 10)"
check cap-off xl sched-credit2 -d one -c 0

if xenhypfs ls /domain >/dev/null 2>&1; then
    id=$(xl domid one)
    check warp-listed grep -q warp-limit <<<"$(xenhypfs ls "/domain/$id/bvt")"
    check warp-tree grep -q unwarp <<<"$(xenhypfs tree)"
    check warp-none test "$(xenhypfs cat "/domain/$id/bvt/warp")" = 0
    # Who borrows five seconds comes before Domain 0, too.
    check borrowing between 60 100 "$(share 4 xenhypfs write "/domain/$id/bvt/warp" 5000000)"
    check warp-read test "$(xenhypfs cat "/domain/$id/bvt/warp")" = 5000000
    check paying-back between 0 25 "$(share 3 xenhypfs write "/domain/$id/bvt/warp" 0)"
    refuse warp-nobody 'No such' xenhypfs cat /domain/999/bvt/warp
fi
check keys xl debug-keys r
check queues-shown grep -q 'waiting' <<<"$(xl dmesg)"

check destroy-one xl destroy one
check destroy-two xl destroy two
finish
