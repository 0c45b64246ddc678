#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# The ready configurations: a kernel from Domain 0 (amd64 and cloud), pygrub, and pvgrub2; and a guest's console as a user
# at a terminal has it.

. "$(dirname "$0")/lib.sh"

# ready_made <name> <address> <root>: creates the guest of /etc/xen/<name>.cfg, and shuts it down.
ready_made() {
    local name=$1 address=$2 root=$3
    cp "/etc/xen/$name.cfg" /tmp
    check "$name-create" create "$name"
    check "$name-boots" ready "$name"
    check "$name-root" grep -q "^$root / " <<<"$(ask "$name" 'cat /proc/mounts')"
    check "$name-pings" ping -c 1 -W 5 "$address"
}

# terminal <step>... -- <command>...: runs the command on a terminal of its own. A step is `=<text>` to wait for, or what
# to type. The command must then end by itself.
terminal() {
    timeout 400 python3 -c '
import os, pty, sys
split = sys.argv.index("--")
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[split + 1], sys.argv[split + 1:])
seen = b""

def read(wanted=None):
    global seen
    while wanted is None or wanted not in seen:
        try:
            more = os.read(terminal, 4096)
        except OSError:
            more = b""
        if not more:
            return wanted is None
        sys.stdout.buffer.write(more)
        sys.stdout.flush()
        seen += more
    seen = seen.split(wanted, 1)[1]
    return True

for step in sys.argv[1:split]:
    if step.startswith("="):
        if not read(step[1:].encode()):
            sys.exit("no " + step)
    else:
        os.write(terminal, step.encode())
read()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
' "$@"
}

leave=$'\x1d'
cp /etc/xen/guest.cfg /tmp
check create-with-console terminal '=GUEST-READY' '=# ' $'echo answer-$((20 + 22))\n' '=answer-42' "$leave" -- \
    /usr/sbin/xl create -c /tmp/guest.cfg
check interrupts terminal $'\n' '=# ' $'(echo run\'\'ning; exec sleep 1000)\n' '=running' $'\x03' '=# ' $'echo answer-$((21 + 22))\n' '=answer-43' "$leave" -- \
    /usr/sbin/xl console guest
check goes-on exists guest
check guest-pings ping -c 1 -W 5 192.168.90.10
check guest-kernel grep -Eq '^[0-9.]+-[0-9]+-amd64' <<<"$(ask guest 'uname -r')"
check guest-destroy xl destroy guest
ready_made cloud 192.168.90.11 rootfs
check cloud-kernel grep -Eq '^[0-9.]+-[0-9]+-cloud-amd64' <<<"$(ask cloud 'uname -r')"
check cloud-destroy xl destroy cloud

ready_made pygrub 192.168.90.12 /dev/xvda1
check pygrub-kernel grep -Eq '^[0-9.]+-[0-9]+-cloud-amd64' <<<"$(ask pygrub 'uname -r')"
check pygrub-writes ask pygrub 'echo kept-on-disk >/root/file && sync'
check pygrub-reboot xl reboot pygrub
check pygrub-boots-again ready pygrub 2
check pygrub-kept grep -q kept-on-disk <<<"$(ask pygrub 'cat /root/file')"
check pygrub-shutdown xl shutdown -w pygrub

ready_made pvgrub 192.168.90.13 /dev/xvda1
check pvgrub-kernel grep -Eq '^[0-9.]+-[0-9]+-amd64' <<<"$(ask pvgrub 'uname -r')"
check pvgrub-shutdown xl shutdown -w pvgrub

within 20 alone
for name in pygrub pvgrub; do
    check "$name-fs-is-clean" e2fsck -fn "/var/lib/xen/images/$name.img?offset=1048576"
done
check nothing-left within 10 alone
finish
