#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# The rest of xl's sub-commands (docs/xl.md): those that the other scripts do not use, each with what it is to do or to say.

. "$(dirname "$0")/lib.sh"

pool_rate() { xl sched-credit2 -s -p Pool-0 | grep -q "ratelimit=$1us"; }

config guest "memory = 160"
config two "vcpus = 2"
check create create guest
check boots ready guest

check trigger-nmi xl trigger guest nmi
check nmi-arrives within 20 says guest 'NMI received'
check goes-on ask guest true
check trigger-nmi-again xl trigger guest nmi 0
check nmi-arrives-again within 20 says guest 'NMI received' 2
check goes-on-again ask guest true
# xl says so, and succeeds all the same.
for name in reset init power sleep; do
    check "no-trigger-$name" grep -Eq 'not implemented|Invalid argument' <<<"$(xl trigger guest $name 2>&1)"
done
check nmi-after-save xl save -c guest /tmp/save
rm -f /tmp/save
xl trigger guest nmi
check nmi-arrives-after-save within 20 says guest 'NMI received' 3

check rate pool_rate 5000
check rate-set xl sched-credit2 -s -p Pool-0 -r 500
check rate-read pool_rate 500
refuse rate-too-long 'rror|nvalid|range' xl sched-credit2 -s -p Pool-0 -r 1000000
check rate-back xl sched-credit2 -s -p Pool-0 -r 5000
check vm-list grep -q guest <<<"$(xl vm-list)"
check claims grep -q guest <<<"$(xl claims)"
check pool-migrate xl cpupool-migrate guest Pool-0
refuse pool-destroy "Can't destroy" xl cpupool-destroy Pool-0
refuse no-psr 'rror|not|ailed' xl psr-cat-show
refuse no-flask 'rror|not|ailed|isabled' xl loadpolicy /dev/null
check destroy xl destroy guest

check create-two create two
check two-boots ready two
check both-online up two 2
check vcpu-down xl vcpu-set two 1
check one-online within 20 up two 1
check vcpu-up xl vcpu-set --ignore-host two 2
# The kernel has it back, and leaves it to its user to start it.
check vcpu-starts within 20 ask two 'echo 1 >/sys/devices/system/cpu/cpu1/online'
check both-online-again within 20 up two 2
check runs-on-it ask two 'taskset 2 true && grep -q "^processor.*: 1" /proc/cpuinfo'
check destroy-two xl destroy two
check nothing-left within 10 alone
finish
