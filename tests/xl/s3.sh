#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest's disk and network.

. "$(dirname "$0")/lib.sh"

disk=/var/lib/xen/images/guest.img
truncate -s 0 $disk
truncate -s 64M $disk
networked guest 10 "disk = [ 'file:$disk,xvda,w' ]"
check create create guest
check boots ready guest
check has-disk ask guest 'grep -w 131072 /sys/block/xvda/size'

check make-fs ask guest 'mke2fs /dev/xvda >/dev/null'
check mount ask guest 'mount -t ext4 /dev/xvda /mnt'
check fill ask guest 'dd if=/dev/urandom of=/mnt/data bs=64k count=256 2>/dev/null'
sum=$(ask guest 'md5sum </mnt/data' | md5)
check sync ask guest 'sync && umount /mnt && blockdev --flushbufs /dev/xvda && mount -t ext4 /dev/xvda /mnt'
check reads-back test "$(ask guest 'md5sum </mnt/data' | md5)" = "$sum"
check unmount ask guest 'umount /mnt'

check ping ping -c 3 -W 5 192.168.90.10
check guest-pings ask guest 'ping -c 3 -W 5 192.168.90.1'
dd if=/dev/urandom of=/tmp/file bs=64k count=64 2>/dev/null
file_sum=$(md5sum </tmp/file | md5)
check tcp-to-guest test "$(ask guest 'wget -q -O /tmp/file http://192.168.90.1/tmp/file; md5sum </tmp/file' | md5)" = "$file_sum"
check tcp-to-dom0 test "$(busybox wget -q -O - http://192.168.90.10/tmp/file | md5sum | md5)" = "$file_sum"
check shell-by-tcp grep -q Linux <<<"$(echo 'uname; exit' | nc -w 20 192.168.90.10 23)"

check network-list grep -q 00:16:3e:00:00:0a <<<"$(xl network-list guest)"
check block-list grep -q 51712 <<<"$(xl block-list guest)"

check shutdown xl shutdown -w guest
check gone within 20 gone guest
check fs-is-clean e2fsck -fn $disk
mkdir -p /tmp/mnt
check fs-mounts mount -o loop,ro $disk /tmp/mnt
check fs-data test "$(md5sum </tmp/mnt/data | md5)" = "$sum"
umount /tmp/mnt
check devices-gone test -z "$(losetup -a)$(ls /sys/class/net | grep vif)"

networked reader 10 "disk = [ 'file:$disk,xvda,r' ]"
check create-read-only create reader
check boots-read-only ready reader
check read-only ask reader 'mount -t ext4 -o ro /dev/xvda /mnt && ! dd if=/dev/zero of=/dev/xvda count=1 2>/dev/null'
check read-only-data test "$(ask reader 'md5sum </mnt/data' | md5)" = "$sum"

truncate -s 32M /tmp/second.img
check block-attach xl block-attach reader file:/tmp/second.img xvdb w
check attached within 20 ask reader 'dd if=/dev/zero of=/dev/xvdb bs=64k count=16 oflag=direct 2>/dev/null'
check block-detach xl block-detach reader xvdb
check detached ask reader 'sleep 2; ! test -e /dev/xvdb'
check network-attach xl network-attach reader mac=00:16:3e:00:00:aa bridge=xenbr0
check second-interface within 20 ask reader 'ip link show eth1'
check network-detach xl network-detach reader 00:16:3e:00:00:aa
check destroy xl destroy reader
config lost "disk = [ 'file:/tmp/missing.img,xvda,w' ]"
refuse no-disk 'missing.img|No such file' xl create /tmp/lost.cfg
check nothing-left within 10 alone
finish
