#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# A running guest is managed.

. "$(dirname "$0")/lib.sh"

total() { ask guest "awk '/^MemTotal/ { print \$2 }' /proc/meminfo" | grep -Eo '^[0-9]+'; }
less_than() { [ "$(total)" -lt "$1" ]; }
more_than() { [ "$(total)" -gt "$1" ]; }

config guest "memory = 160"
check create create guest
check boots ready guest
before=$(total)
check mem-set-down xl mem-set guest 128
check smaller within 30 less_than $((before - 25000))
check host-sees-less within 10 test "$(field guest 3)" = 128
check mem-set-up xl mem-set guest 160
check larger within 30 more_than $((before - 4000))
check mem-max xl mem-max guest 192

check weights grep -Eq '^guest +[0-9]+ +256' <<<"$(xl sched-credit2)"
check weight-set xl sched-credit2 -d guest -w 512
check weight-read grep -Eq '^guest +[0-9]+ +512' <<<"$(xl sched-credit2)"
check pin xl vcpu-pin guest 0 0
check rename xl rename guest other
check renamed exists other
check rename-back xl rename other guest
check domid test "$(xl domname "$(xl domid guest)")" = guest
check uptime grep -Eq '^guest +[0-9]+ +0:' <<<"$(xl uptime)"
check list-long python3 -m json.tool <<<"$(xl list -l guest)"
check config-update xl config-update guest /tmp/guest.cfg
check dmesg test -n "$(xl dmesg)"
check debug-keys xl debug-keys q
check dump-guest grep -Eq "(d|domain )$(xl domid guest):" <<<"$(xl dmesg)"
check xentop grep -q guest <<<"$(xentop -b -i 1 2>&1)"
check sysrq xl sysrq guest h
check sysrq-arrives within 20 says guest 'sysrq: HELP'
check dump-core xl dump-core guest /tmp/core
rm -f /tmp/core

check reboot xl reboot guest
check boots-again ready guest 2
check shutdown xl shutdown -w guest
check gone within 20 gone guest

config crasher "on_crash = 'preserve'"
check create-crasher create crasher
check crasher-boots ready crasher
type_in crasher 'echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger'
check crashed within 30 in_state crasher "*c*"
check destroy-crashed xl destroy crasher

config again "on_crash = 'restart'"
check create-again create again
check again-boots ready again
type_in again 'echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger'
check restarted ready again 2
check destroy-again xl destroy again
config off "on_poweroff = 'destroy'"
check create-off create off
check off-boots ready off
type_in off poweroff
check off-gone within 60 gone off
check nothing-left within 10 alone
finish
