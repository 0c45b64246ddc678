#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Processor pools: on one processor only what is refused; on two, a pool of its own for a guest, there and back.

. "$(dirname "$0")/lib.sh"

processors=$(info nr_cpus)

# pool <name> <processors> <domains>: what xl shows.
pool() { xl cpupool-list | grep -Eq "^$1 +$2 +credit2 +y +$3\$"; }
# runs_on <name> <processor>: whether the guest computes there and nowhere else, as far as is seen.
runs_on() {
    for _ in 1 2 3 4 5; do
        xl vcpu-list "$1" | awk -v cpu="$2" 'NR > 1 && $4 != cpu { other = 1 } END { exit other }' || return 1
        sleep 0.3
    done
}

cat >/tmp/pool.cfg <<'END'
name = "second"
sched = "credit2"
cpus = ["1"]
END

check first pool Pool-0 "$processors" 1
check free-cpus test "$(info free_cpus)" = 0
refuse taken 'rror|not|free' xl cpupool-create /tmp/pool.cfg
# xl does as many as it can, one after the other, and succeeds.
xl cpupool-cpu-remove Pool-0 "0-$((processors - 1))" >/dev/null 2>&1
check last-processor pool Pool-0 1 1
xl cpupool-cpu-add Pool-0 all >/dev/null 2>&1
check whole pool Pool-0 "$processors" 1
if [ "$processors" = 1 ]; then
    finish
    exit
fi

check remove xl cpupool-cpu-remove Pool-0 1
check removed pool Pool-0 1 1
check free-cpus-1 test "$(info free_cpus)" = 1
check alone within 20 runs_on Domain-0 0
check create xl cpupool-create /tmp/pool.cfg
check created pool second 1 0
check listed grep -Eq '^second +1$' <<<"$(xl cpupool-list -c)"

config guest "vcpus = 2" "pool = 'second'"
check guest create guest
check boots ready guest
check inhabited pool second 1 1
check shown grep -Eq '^guest .* second$' <<<"$(xl list -c)"
type_in guest 'while :; do :; done & while :; do :; done &'
check runs-there within 20 runs_on guest 1
refuse pin-elsewhere 'ould not set|nvalid|fail' xl vcpu-pin guest 0 0
xl cpupool-cpu-remove second 1 >/dev/null 2>&1
check remove-inhabited pool second 1 1
refuse destroy-inhabited "Can't destroy" xl cpupool-destroy second

# A guest that has a processor for itself gets all of it, whatever goes on elsewhere.
config other
check other create other
check other-boots ready other
type_in other 'while :; do :; done &'
sleep 2
check undisturbed test "$(rate guest 10)" -ge 90

check migrate xl cpupool-migrate guest Pool-0
check moved pool second 1 0
check moved-in pool Pool-0 1 3
check runs-here within 20 runs_on guest 0
check rename xl cpupool-rename second third
check renamed pool third 1 0
check give xl cpupool-cpu-remove third 1
check back xl cpupool-cpu-add Pool-0 1
check back-all pool Pool-0 2 3
# Two vCPUs that compute, and one more: both processors are used again.
check spread within 20 eval 'xl vcpu-list guest | awk "NR > 1 { print \$4 }" | grep -q 1'
check destroy xl cpupool-destroy third
refuse gone 'rror|unknown|fail' xl cpupool-destroy third
check destroy-guest xl destroy guest
check destroy-other xl destroy other
check alone-again within 60 alone
finish
