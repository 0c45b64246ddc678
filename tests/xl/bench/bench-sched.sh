#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# What the scheduler gives: shares of guests that compute, wake-up latency beside them, and what two processors do more than
# one. Prints `BENCH <row> <number>`; `cargo xtask bench sched` runs it in Domain 0 and knows the units.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/bench.sh"

# On a machine with several processors only what needs them.
processors=$(info nr_cpus)
hogs=31
seconds=10

# times <name>...: the processor time each guest had, in nanoseconds.
times() {
    local ids=()
    for name in "$@"; do
        ids+=("$(xl domid "$name")")
    done
    PYTHONPATH=/usr/lib/xen-4.17/lib/python python3 -c '
import sys
from xen.lowlevel.xc import xc
times = {domain["domid"]: domain["cpu_time"] for domain in xc().domain_getinfo()}
print(*(times[int(id)] for id in sys.argv[1:]))' "${ids[@]}"
}

# deviation <weight of the first> <weight of the next>...: the largest error of a share of the guests hog1, hog2, ..., in
# per cent of what its weight says.
deviation() {
    local names=() before after index=0
    for _ in "$@"; do
        index=$((index + 1))
        names+=("hog$index")
    done
    before=$(times "${names[@]}")
    sleep $seconds
    after=$(times "${names[@]}")
    python3 -c '
import sys
weights, before, after = (list(map(int, text.split())) for text in sys.argv[1:])
ran = [end - start for start, end in zip(before, after)]
print("%.2f" % max(abs(one * sum(weights) / weight / sum(ran) - 1) * 100 for one, weight in zip(ran, weights)))' \
        "$*" "$before" "$after"
}

# compute <number>, rest <number>: the guest computes without end, or stops.
compute() { type_in "hog$1" 'while :; do :; done &'; }
rest() { type_in "hog$1" 'kill %1; wait'; }

boot_hogs() {
    local index
    for index in $(seq "$1" "$2"); do
        config "hog$index" "memory = 96"
        create "hog$index" >/dev/null 2>&1
        ready "hog$index" || fail boot "hog$index"
    done
}

weights() {
    local index=0
    for weight in "$@"; do
        index=$((index + 1))
        xl sched-credit2 -d "hog$index" -w "$weight"
    done
}

shares() {
    local busy=0 count
    for count in 2 4 8; do
        while [ $busy -lt $count ]; do
            busy=$((busy + 1))
            compute $busy
        done
        # shellcheck disable=SC2046 # several words
        {
            weights $(yes 256 | head -n $count)
            sleep 2
            row "share-equal-$count" "$(deviation $(yes 256 | head -n $count))"
            weights $(seq 128 128 $((128 * count)))
            sleep 2
            row "share-weights-$count" "$(deviation $(seq 128 128 $((128 * count))))"
            weights $(yes 256 | head -n $count)
        }
    done
    for index in $(seq $busy); do
        rest "$index"
    done
}

# spread <row> <median> <99th percentile>
spread() {
    row "$1-median" "$2"
    row "$1-p99" "$3"
}

latency() {
    # shellcheck disable=SC2046 # two words
    {
        spread "wake-timer-$1" $(ask probe "/tmp/pxwake timer 10000 0 $samples" 300)
        spread "wake-net-$1" $(/run/philoxen/pxwake ping 192.168.90.20:9001 "$samples")
    }
}

# The timer of a guest that computes as long as it sleeps: beside seven others that is more than its share, and so it has to
# wait for its turn now and then, unless it may borrow.
warps() {
    local unwarped warped id
    networked borrower 19 "memory = 96"
    create borrower >/dev/null 2>&1
    ready borrower || fail boot borrower
    fetch borrower pxwake
    # shellcheck disable=SC2046,SC2086 # two words
    {
        unwarped=$(ask borrower "/tmp/pxwake timer 4000 4000 $samples" 300)
        spread wake-unwarped $unwarped
        id=$(xl domid borrower)
        if xenhypfs write "/domain/$id/bvt/warp" 60000000 2>/dev/null; then
            warped=$(ask borrower "/tmp/pxwake timer 4000 4000 $samples" 300)
            spread wake-warped $warped
            row wake-warped-ratio "$(awk '{ printf "%.3f", $2 / $4 }' <<<"$warped $unwarped")"
        fi
    }
    xl destroy borrower
}

# An event to another guest and back: two switches between domains, with what the kernels do for an interrupt and a process.
switches() {
    local index port
    for index in 1 2; do
        networked "end$index" $((20 + index)) "memory = 96"
        create "end$index" >/dev/null 2>&1
        ready "end$index" || fail boot "end$index"
        fetch "end$index" pxwake
        ask "end$index" 'modprobe xen-evtchn' >/dev/null
    done
    type_in end1 "/tmp/pxwake event-echo $(xl domid end2) >/tmp/port &"
    sleep 1
    port=$(ask end1 'cat /tmp/port' | tr -dc 0-9)
    # shellcheck disable=SC2046 # two words
    spread event-ping $(ask end2 "/tmp/pxwake event-ping $(xl domid end1) $port 10000" 300)
    xl destroy end1
    xl destroy end2
}

latencies() {
    local busy=0 count
    samples=500
    networked probe 20 "memory = 96"
    create probe >/dev/null 2>&1
    ready probe || fail boot probe
    fetch probe pxwake
    type_in probe '/tmp/pxwake echo 9001 &'
    latency 0
    for count in 1 7 31; do
        [ $count -le $hogs ] || break
        while [ $busy -lt $count ]; do
            busy=$((busy + 1))
            compute $busy
        done
        sleep 2
        latency $count
        [ $count != 7 ] || warps
    done
    for index in $(seq $busy); do
        rest "$index"
    done
}

# work <number>: the units of work per second that each of so many guests does. Nobody looks before they are done: Domain 0
# would take the time from them.
work() {
    local index
    for index in $(seq "$1"); do
        type_in "hog$index" "/tmp/pxwake work $seconds >/tmp/work"
    done
    sleep $((seconds + 2))
    for index in $(seq "$1"); do
        ask "hog$index" 'cat /tmp/work'
    done
}

# Units of work that guests do alone, and with as many others as there are processors.
scaling() {
    local alone index
    for index in $(seq "$processors"); do
        networked "hog$index" $((30 + index)) "memory = 96"
        create "hog$index" >/dev/null 2>&1
        ready "hog$index" || fail boot "hog$index"
        fetch "hog$index" pxwake
    done
    for _ in 1 2 3; do
        alone=$(work 1)
        row scaling "$(work "$processors" | awk -v alone="$alone" '{ sum += $1 } END { printf "%.3f", sum / alone }')"
    done
}

if [ "$processors" = 1 ]; then
    switches
    boot_hogs 1 8
    shares
    boot_hogs 9 $hogs
    latencies
else
    scaling
fi
finish
