#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest can use no other MAC and no other IP address than its configuration says.

. "$(dirname "$0")/lib.sh"

rules() { nft list ruleset; }
# from <address>: the guest pings Domain 0 from that address.
from() { ask thief "ping -c 2 -W 2 -I $1 192.168.90.1"; }
refused() { ! "$@"; }
# claims <guest> <address>: what Domain 0 believes who has the address is that guest's MAC address.
claims() { ip neigh show "$2" | grep -q "00:16:3e:00:00:$(printf %02x "$1")"; }
knows_mac() { bridge fdb show br xenbr0 | grep -q "$1"; }
other=00:16:3e:00:00:63

networked victim 12
networked thief 13
check create-victim create victim
check create-thief create thief
check victim-boots ready victim
check thief-boots ready thief
check rules-are-set grep -q '192.168.90.13' <<<"$(rules)"
check own-address from 192.168.90.13
check victim-pings ask victim 'ping -c 2 -W 5 192.168.90.1'
check victim-is-known claims 12 192.168.90.12

check takes-address ask thief 'ip addr add 192.168.90.77/24 dev eth0'
check unknown-address refused from 192.168.90.77
ip neigh flush dev xenbr0
check unanswered refused ping -c 2 -W 2 192.168.90.77
check no-arp-request refused ask thief 'arping -c 2 -w 3 -I eth0 -s 192.168.90.77 192.168.90.1'
check guest-by-guest refused ask thief 'ping -c 2 -W 2 -I 192.168.90.77 192.168.90.12'
check real-address-still-works from 192.168.90.13

# The victim's address: in packets, and claimed by ARP while the victim does not speak.
check victim-pings-again ask victim 'ping -c 1 -W 5 192.168.90.1'
xl pause victim
check takes-victims-address ask thief 'ip addr add 192.168.90.12/24 dev eth0'
check victims-address refused from 192.168.90.12
ask thief 'arping -U -c 3 -w 4 -I eth0 192.168.90.12' >/dev/null
check victim-keeps-address claims 12 192.168.90.12
xl unpause victim
check victim-is-there within 20 ask victim 'ping -c 1 -W 5 192.168.90.1'
check victim-still-claims claims 12 192.168.90.12
ask thief 'ip addr del 192.168.90.12/24 dev eth0; ip addr del 192.168.90.77/24 dev eth0' >/dev/null

own=$(ip -6 -o addr show dev xenbr0 | grep -Eo 'fe80::[0-9a-f:]+')
check no-ipv6 refused ask thief "ping -6 -c 2 -W 2 -I eth0 $own"
check changes-mac ask thief "ip link set eth0 down && ip link set eth0 address $other && ip link set eth0 up"
check other-mac refused from 192.168.90.13
check mac-is-unknown refused knows_mac $other
check mac-back ask thief 'ip link set eth0 down && ip link set eth0 address 00:16:3e:00:00:0d && ip link set eth0 up'
check works-again within 20 from 192.168.90.13

# Without addresses in the configuration, the MAC address still counts.
config free "extra = 'console=hvc0 ip=192.168.90.14/24'" "vif = [ 'mac=00:16:3e:00:00:0e,bridge=xenbr0' ]"
check create-free create free
check free-boots ready free
check any-address ask free 'ip addr add 192.168.90.78/24 dev eth0 && ping -c 2 -W 5 -I 192.168.90.78 192.168.90.1'
ask free "ip link set eth0 down; ip link set eth0 address $other; ip link set eth0 up" >/dev/null
check free-other-mac refused ask free 'ping -c 2 -W 2 192.168.90.1'

for name in free thief victim; do
    check "destroy-$name" xl destroy $name
done
check rules-are-gone within 20 refused grep -q 'port-vif' <<<"$(rules)"
check nothing-left within 10 alone
finish
