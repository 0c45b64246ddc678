#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Thirty-two guests at once: all reach their shells, each console answers for its own guest, and nothing of them is left.

. "$(dirname "$0")/lib.sh"

is_called() { grep -qx "I am $1" <<<"$(ask "$1" "echo I am \$(sed 's/.*name=//' /proc/cmdline)" 180)"; }

for number in {1..32}; do
    config "guest$number" "memory = 96" "extra = 'console=hvc0 name=guest$number'"
    check "create-$number" create "guest$number"
done
for number in {1..32}; do
    check "boots-$number" ready "guest$number"
done
check all-there test "$(xl list | grep -c '^guest')" = 32
for number in {1..32}; do
    check "answers-$number" is_called "guest$number"
done
check uptime test "$(xl uptime | grep -c '^guest')" = 32
check xentop test "$(xentop -b -i 1 | grep -c guest)" = 32
for number in {1..32}; do
    check "destroy-$number" xl destroy "guest$number"
done
check nothing-left within 20 alone

# Tables that grow with the number of guests have grown: as many once more take nothing that they do not give back.
sleep 2
before=$(free_memory)
for number in {1..32}; do
    check "create-again-$number" create "guest$number" -p
done
for number in {1..32}; do
    check "destroy-again-$number" xl destroy "guest$number"
done
check nothing-left-again within 20 alone
regained memory 20 "$before"
finish
