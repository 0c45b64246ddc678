#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# An idle guest moves to a new domain on the same host while it runs; receivers that fail leave it where it is.

. "$(dirname "$0")/lib.sh"

config idle
check create-idle create idle
check idle-boots ready idle
ask idle 'secret=kept-42; dd if=/dev/urandom of=/tmp/data bs=64k count=256 2>/dev/null' >/dev/null
sum=$(ask idle 'md5sum </tmp/data' | md5)
for round in 1 2; do
    before=$(xl domid idle)
    check migrate-idle-$round migrate idle
    check idle-moved-$round moved idle "$before"
    check idle-remembers-$round grep -q kept-42 <<<"$(ask idle 'echo $secret')"
    check idle-memory-$round test "$(ask idle 'md5sum </tmp/data' | md5)" = "$sum"
    check idle-time-$round ask idle 'sleep 1'
done
# The receiver gets part of the memory and no more.
refuse cut-short 'Migration failed' migrate idle 'head -c 20000000 | xl migrate-receive'
check idle-stays ask idle 'echo still here'
# The receiver has everything, and is cut off in the middle of saying so: no other process may hold its way to the sender.
cat >/tmp/cut-off <<'EOF'
exec 4<&0
exec dd bs=1 count=60 2>/dev/null < <(exec xl migrate-receive <&4)
EOF
refuse not-heard 'Migration failed' migrate idle 'exec bash /tmp/cut-off'
check idle-goes-on ask idle 'sleep 1 && md5sum </tmp/data'
check one-idle within 30 eval '[ "$(xl list | grep -c idle)" = 1 ]'
check migrate-after-failures migrate idle
check idle-memory-at-last test "$(ask idle 'md5sum </tmp/data' | md5)" = "$sum"
check destroy-idle xl destroy idle
check nothing-left within 10 alone
finish
