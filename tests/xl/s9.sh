#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Debian's prebuilt checks that need no HVM, and its tools that only ask the hypervisor.
# Left out: test-paging-mempool needs HVM; test-tsx takes QEMU, which has no RTM but executes XBEGIN, for a broken processor.

. "$(dirname "$0")/lib.sh"

bin=/usr/lib/xen-4.17/bin
# Without HVM they skip that part.
for name in test-cpu-policy test-resource test-xenstore; do
    check $name timeout 120 $bin/$name
done
check resource-needed-no-hvm grep -q 'Test grant table' <<<"$($bin/test-resource)"
check cpuid-policies grep -q '^PV Default policy' <<<"$($bin/xen-cpuid -p 2>/dev/null)"
check event-channels grep -q 'Virtual IRQ 0' <<<"$($bin/lsevtchn 0)"
check nothing-left within 10 alone
finish
