#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest without devices lives and dies.

. "$(dirname "$0")/lib.sh"

config plain
check create-paused create plain -p
check paused in_state plain p
check paused-memory test "$(field plain 3)" -ge 127
check paused-silent test ! -s "$(console_log plain)"
check unpause xl unpause plain
check boots ready plain
check answers test "$(ask plain 'uname -s' | tr -d '\n')" = Linux
check vcpu-list grep -Eq '^plain +[0-9]+ +0 +0 ' <<<"$(xl vcpu-list plain)"

check pause xl pause plain
check stopped in_state plain p
time_before=$(field plain 6)
sleep 2
check no-time-passes test "$(field plain 6)" = "$time_before"
check unpause-again xl unpause plain
check goes-on ask plain 'true'

check destroy xl destroy plain
check gone gone plain
check only-domain0 within 10 alone

check create create plain
check boots-unpaused ready plain
refuse name-taken 'already exists' xl create /tmp/plain.cfg
check destroy-running xl destroy plain

config big "memory = 100000"
refuse too-much-memory 'not enough|failed to free memory|allocation|memory' xl create /tmp/big.cfg
config kernelless "kernel = '/boot/nothing'"
refuse no-kernel 'nothing' xl create /tmp/kernelless.cfg
config garbage "kernel = '/boot/guest-cloud-amd64.img'"
refuse no-kernel-image 'kernel|image|loader' xl create /tmp/garbage.cfg
check nothing-left within 10 alone
finish
