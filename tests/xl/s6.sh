#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Guests come and go, and the host's memory is what it was.

. "$(dirname "$0")/lib.sh"

config round
check first create round
check first-destroyed xl destroy round
sleep 2
before=$(free_memory)
check memory-known test "$before" -gt 0
for round in 1 2 3 4 5 6 7 8 9 10; do
    # Every other guest dies while it runs, the rest before their first instruction.
    if [ $((round % 2)) = 0 ]; then
        check "create-$round" create round
        sleep 2
    else
        check "create-$round" create round -p
    fi
    check "destroy-$round" xl destroy round
done
regained memory 20 "$before"
check nothing-left within 10 alone
finish
