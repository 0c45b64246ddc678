#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Several guests at once: they live side by side and talk to each other.

. "$(dirname "$0")/lib.sh"

all="11 12 13 14"
for number in $all; do
    networked "guest$number" "$number" "memory = 112"
    check "create-$number" create "guest$number"
done
for number in $all; do
    check "boots-$number" ready "guest$number"
done
for number in $all; do
    check "pings-$number" ask guest11 "ping -c 2 -W 5 192.168.90.$number"
done
ask guest12 'dd if=/dev/urandom of=/tmp/file bs=64k count=32 2>/dev/null' >/dev/null
sum=$(ask guest12 'md5sum </tmp/file' | md5)
check copy-between-guests test "$(ask guest13 'wget -q -O - http://192.168.90.12/tmp/file | md5sum' | md5)" = "$sum"
check shutdown xl shutdown guest14
for number in 11 12 13; do
    check "destroy-$number" xl destroy "guest$number"
done
check shut-down within 60 gone guest14
check nothing-left within 10 alone
finish
