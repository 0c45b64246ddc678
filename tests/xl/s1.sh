#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# What the host says about itself.

. "$(dirname "$0")/lib.sh"

number() { [[ $(info "$1") =~ ^[0-9]+$ ]] && [ "$(info "$1")" -ge "$2" ]; }

check info xl info
check version test "$(info xen_major).$(info xen_minor)" = 4.17
check capabilities grep -q xen-3.0-x86_64 <<<"$(info xen_caps)"
check total-memory number total_memory 512
check free-memory number free_memory 64
check processors number nr_cpus 1
check scheduler test -n "$(info xen_scheduler)"
check page-size test "$(info xen_pagesize)" = 4096
check info-numa xl info -n
check list-domain0 grep -Eq '^Domain-0 +0 +[0-9]+ +[0-9]+ +r-----' <<<"$(xl list)"
check list-verbose xl list -v
check list-long python3 -m json.tool <<<"$(xl list -l)"
check vcpu-list grep -Eq '^Domain-0 +0 +0 +0 +r' <<<"$(xl vcpu-list)"
check domid test "$(xl domid Domain-0)" = 0
check domname test "$(xl domname 0)" = Domain-0
check uptime grep -q Domain-0 <<<"$(xl uptime)"
check scheduler-credit2 grep -Eq '^Domain-0 +0 +256' <<<"$(xl sched-credit2)"
check cpupool grep -q Pool-0 <<<"$(xl cpupool-list)"
check dmesg test -n "$(xl dmesg)"
check debug-keys xl debug-keys h
check xentop grep -q Domain-0 <<<"$(xentop -b -i 1 2>&1)"
check store grep -q 'name = "Domain-0"' <<<"$(xenstore-ls /local/domain/0)"
refuse unknown-domain 'invalid domain identifier' xl pause nobody
finish
