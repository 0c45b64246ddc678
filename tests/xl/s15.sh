#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# A hundred guests come and go, and the host's memory is what it was, to the page: nine of ten die before their first
# instruction, each tenth at its shell.

. "$(dirname "$0")/lib.sh"

config round "memory = 96"
check first create round
check first-boots ready round
check first-destroyed xl destroy round
within 20 alone
sleep 2
before=$(free_memory)
check memory-known test "$before" -gt 0

# one <round>: whether all steps of the round worked.
one() {
    if [ $(($1 % 10)) = 0 ]; then
        create round && ready round || return
    else
        create round -p || return
    fi
    xl destroy round
}

for round in {1..100}; do
    one "$round" >/tmp/round 2>&1 || { fail "round-$round"; sed 's/^/  | /' /tmp/round; }
    [ $((round % 10)) != 0 ] || echo "$round rounds, $SECONDS s: $(($(free_memory) - before)) KiB more than before"
done
check rounds test "$failed" = 0
regained memory 20 "$before"
check nothing-left within 10 alone
finish
