#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# vCPUs by name: taken away and brought back under load, pinned, and where they then really are; Domain 0's own, too.

. "$(dirname "$0")/lib.sh"

cpus=$(info nr_cpus)

# column <domain> <vCPU> <column>: of `xl vcpu-list`: 4 is the processor, 5 the state, 6 the time.
column() { xl vcpu-list "$1" | awk -v vcpu="$2" -v column="$3" 'NR > 1 && $3 == vcpu { print $column }'; }
# affinity <domain> <vCPU> <hard> <soft>
affinity() { grep -Eq "^$1 +[0-9]+ +$2 .* $3 / $4\$" <<<"$(xl vcpu-list "$1")"; }

# sees <list>: whether the guest has just these.
sees() { test "$(ask four 'cat /sys/devices/system/cpu/online')" = "$1"; }
# The kernel gets vCPUs back, and leaves it to its user to start them.
start() { ask four 'for cpu in 1 2 3; do echo 1 >/sys/devices/system/cpu/cpu$cpu/online; done 2>/dev/null; cat /sys/devices/system/cpu/online'; }
# starts <list>
starts() { test "$(start)" = "$1"; }

# For the guest's shell: sleeps on each vCPU.
everywhere='for cpu in 0 1 2 3; do taskset $(printf %x $((1 << cpu))) sleep 0.1 || exit; done'

# stay <domain> <processor> <vCPU>...: how many of six looks find all of these vCPUs there.
stay() {
    local domain=$1 where=$2 look vcpu good=0
    shift 2
    for look in {1..6}; do
        xl vcpu-list "$domain" >/tmp/vcpus
        for vcpu; do
            awk -v vcpu="$vcpu" -v where="$where" '$3 == vcpu && $4 == where { good = 1 } END { exit !good }' /tmp/vcpus || continue 2
        done
        good=$((good + 1))
    done
    echo $good
}
at_least() { [ "$2" -ge "$1" ]; }

config four "vcpus = 4"
check create create four
check boots ready four
check all-up up four 4
check sees-all sees 0-3

# Each vCPU computes: the time of each grows.
ask four 'for cpu in 0 1 2 3; do taskset $(printf %x $((1 << cpu))) sh -c "while :; do :; done" & done' >/dev/null
before=$(xl vcpu-list four)
sleep 5
after=$(xl vcpu-list four)
for vcpu in 0 1 2 3; do
    check "works-$vcpu" awk -v vcpu=$vcpu 'NR > 1 && $3 == vcpu { time[++n] = $6 } END { exit !(n == 2 && time[2] > time[1] + 0.3) }' \
        - <<<"$before"$'\n'"$after"
done

# Down and up again, while they compute.
for round in 1 2 3; do
    check "down-$round" xl vcpu-set four 1
    check "one-up-$round" within 60 up four 1
    check "one-left-$round" within 60 sees 0
    check "up-$round" xl vcpu-set --ignore-host four $((round == 2 ? 3 : 4))
    check "start-$round" within 60 starts "0-$((round == 2 ? 2 : 3))"
done
check all-up-again within 20 up four 4
check runs-on-each ask four "$everywhere"
refuse too-many 'maxmem|maximum|max|exceed|rror|nvalid|vcpus' xl vcpu-set --ignore-host four 5

# Those that are away stay so in a saved guest, and come back afterwards.
check down-before-save eval 'xl vcpu-set four 2 && within 60 sees 0-1'
check save xl save four /tmp/four
# `xl uptime` counts from here.
start=$(date +%s)
check restore eval 'xl restore /tmp/four && rm /tmp/four'
check two-restored eval 'up four 2 && sees 0-1'
check up-after-restore xl vcpu-set --ignore-host four 4
check start-after-restore within 60 starts 0-3
check runs-after-restore ask four "$everywhere"

# Affinity. Those that went away have left their work to others.
ask four 'killall sh; for cpu in 0 1 2 3; do taskset $(printf %x $((1 << cpu))) sh -c "while :; do :; done" & done' >/dev/null
check free affinity four 3 all all
for where in $(seq 0 $((cpus - 1))); do
    check "pin-$where" xl vcpu-pin four all "$where"
    [ "$cpus" = 1 ] || check "pinned-$where" affinity four 3 "$where" all
    check "stay-$where" test "$(stay four "$where" 0 1 2 3)" = 6
done
refuse pin-nowhere 'map is empty' xl vcpu-pin four 0 $((cpus + 7))
check unpin xl vcpu-pin four all all
check unpinned affinity four 3 all all
if [ "$cpus" = 2 ]; then
    check pin-apart eval 'xl vcpu-pin four 0 0; xl vcpu-pin four 1 1; xl vcpu-pin four 2 0; xl vcpu-pin four 3 1'
    check apart-0 test "$(stay four 0 0 2)" = 6
    check apart-1 test "$(stay four 1 1 3)" = 6
    check unpin-again xl vcpu-pin four all all
    # Only vCPU 2 computes: a processor is free for it.
    ask four 'killall sh; taskset 4 sh -c "while :; do :; done" &' >/dev/null
    for where in 1 0; do
        check "prefer-$where" xl vcpu-pin four 2 - $where
        check "preferred-$where" affinity four 2 all $where
        sleep 1
        check "drawn-to-$where" at_least 4 "$(stay four $where 2)"
    done
    check no-preference xl vcpu-pin four 2 - all
    check no-preference-shown affinity four 2 all all
fi

if [ "$cpus" = 2 ]; then
    check host-up up Domain-0 2
    check host-down xl vcpu-set 0 1
    check host-one within 20 eval '[ "$(cat /sys/devices/system/cpu/online)" = 0 ] && up Domain-0 1'
    check host-works ask four true
    check host-up-again xl vcpu-set 0 2
    check host-starts within 20 eval 'echo 1 >/sys/devices/system/cpu/cpu1/online && [ "$(cat /sys/devices/system/cpu/online)" = 0-1 ]'
    check host-both up Domain-0 2
    check host-works-on-both busybox taskset 2 xl info
    check host-pin xl vcpu-pin 0 1 0
    check host-pinned affinity Domain-0 1 0 all
    check host-runs-there taskset 2 true
    check host-stays test "$(stay Domain-0 0 1)" = 6
    check host-unpin xl vcpu-pin 0 all all
fi

# Hours, minutes, seconds since it was restored.
runs=$(xl uptime four | awk '$1 == "four" { split($3, part, ":"); print part[1] * 3600 + part[2] * 60 + part[3] }')
lived=$(($(date +%s) - start))
check uptime eval "echo $runs of $lived; [ $runs -le $((lived + 1)) ] && [ $runs -ge $((lived - 30)) ]"
check destroy xl destroy four
check nothing-left within 10 alone
finish
