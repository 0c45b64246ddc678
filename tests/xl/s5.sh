#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest is saved, and goes on from the file.

. "$(dirname "$0")/lib.sh"

saves=/var/lib/xen/save
mkdir -p $saves
config plain
check create-plain create plain
check plain-boots ready plain
ask plain 'secret=kept-42; dd if=/dev/urandom of=/tmp/data bs=64k count=128 2>/dev/null' >/dev/null
sum=$(ask plain 'md5sum </tmp/data' | md5)
check save xl save plain $saves/plain
check plain-gone gone plain
check restore xl restore $saves/plain
check goes-on ask plain true
check remembers grep -q kept-42 <<<"$(ask plain 'echo $secret')"
check memory-is-right test "$(ask plain 'md5sum </tmp/data' | md5)" = "$sum"
check time-passes ask plain 'sleep 1'
check destroy-plain xl destroy plain

disk=/var/lib/xen/images/guest.img
truncate -s 64M $disk
networked guest 10 "disk = [ 'file:$disk,xvda,w' ]"
check create create guest
check boots ready guest
check fs ask guest 'mke2fs /dev/xvda >/dev/null && mount -t ext4 /dev/xvda /mnt && echo before >/mnt/file'
check save-devices xl save guest $saves/guest
check restore-devices xl restore $saves/guest
check devices-go-on ask guest 'echo after >>/mnt/file && sync && cat /mnt/file'
check ping within 30 ping -c 1 -W 2 192.168.90.10
check save-and-go-on xl save -c guest $saves/guest
check went-on ask guest 'echo more >>/mnt/file && sync'
check destroy xl destroy guest
head -c 1000000 $saves/plain >$saves/short
refuse short-file 'restor|stream|read' xl restore $saves/short
check nothing-left within 10 alone
finish
