# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# For the scripts beside this one, which `cargo xtask test` runs in Domain 0: each check prints one line,
# `PHILOXEN-TEST <script>.<check> PASS|FAIL`, and the script's own line comes last.

shopt -s extglob
script=$(basename "$0" .sh)
passed=0
failed=0

# No command may hold up the script for ever.
xl() { timeout 180 /usr/sbin/xl "$@"; }

# md5: the sum alone, from what md5sum prints.
md5() { grep -o '^[0-9a-f]\{32\}'; }

# pass <check> [detail], fail <check> <detail>
pass() {
    passed=$((passed + 1))
    echo "PHILOXEN-TEST $script.$1 PASS ${2-}"
}
fail() {
    failed=$((failed + 1))
    echo "PHILOXEN-TEST $script.$1 FAIL ${2-}"
}

# check <check> <command>...: passes when the command succeeds; shows what a failed one printed.
check() {
    local name=$1 status
    shift
    "$@" >/tmp/output 2>&1
    status=$?
    if [ $status -eq 0 ]; then
        pass "$name"
    else
        fail "$name" "(status $status) $*"
        tail -n 30 /tmp/output | sed 's/^/  | /'
    fi
    return $status
}

# refuse <check> <text> <command>...: passes when the command fails and says <text> (an extended regular expression).
refuse() {
    local name=$1 text=$2
    shift 2
    if "$@" >/tmp/output 2>&1; then
        fail "$name" "succeeded: $*"
    elif ! grep -Eq "$text" /tmp/output; then
        fail "$name" "does not say '$text': $*"
        tail -n 30 /tmp/output | sed 's/^/  | /'
    else
        pass "$name"
    fi
}

# within <seconds> <command>...: repeats the command until it succeeds.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        # Whoever polls takes the processor from whom is waited for.
        sleep 0.5
    done
}

# finish: the script's verdict, also as its status. A failed script shows what could explain it.
finish() {
    if [ "$failed" -eq 0 ]; then
        echo "PHILOXEN-TEST $script PASS $passed checks, $SECONDS s"
    else
        echo "--- the end of xl dmesg"
        xl dmesg 2>&1 | tail -n 40
        for log in /var/log/xen/*.log /var/log/xen/console/*.log; do
            [ ! -s "$log" ] || { echo "--- $log"; tail -n 15 "$log"; }
        done
        echo "PHILOXEN-TEST $script FAIL $failed of $((passed + failed)) checks, $SECONDS s"
        return 1
    fi
}

# config <name> [line]...: writes /tmp/<name>.cfg for a small guest without devices; later lines win.
config() {
    local name=$1
    shift
    {
        echo "name = '$name'"
        echo "type = 'pv'"
        echo "kernel = '/boot/vmlinuz-cloud-amd64'"
        echo "ramdisk = '/boot/guest-cloud-amd64.img'"
        echo "extra = 'console=hvc0'"
        echo "memory = 128"
        echo "vcpus = 1"
        echo "tsc_mode = 'native'"
        printf '%s\n' "$@"
    } >"/tmp/$name.cfg"
}

# networked <name> <number> [line]...: as config, with a network interface at 192.168.90.<number>.
networked() {
    local name=$1 number=$2
    shift 2
    config "$name" "extra = 'console=hvc0 ip=192.168.90.$number/24'" \
        "vif = [ 'mac=00:16:3e:00:00:$(printf %02x "$number"),bridge=xenbr0,ip=192.168.90.$number' ]" "$@"
}

# The console's log is named after the guest as it was when its domain was made: while it migrated, or before.
declare -A arrived
console_log() { echo "/var/log/xen/console/guest-$1${arrived[$1]-}.log"; }

# create <name> [option]...: creates a guest from /tmp/<name>.cfg, its console's log being empty.
create() {
    local name=$1
    shift
    unset "arrived[$name]"
    : >"$(console_log "$name")"
    xl create "$@" "/tmp/$name.cfg"
}

# says <name> <text> [times]: whether the guest's console has said the text.
says() { [ "$(grep -c -- "$2" "$(console_log "$1")")" -ge "${3-1}" ]; }

# ready <name> [times]: waits until the guest has reached its shell.
ready() { within 300 says "$1" GUEST-READY "${2-1}" && sleep 1; }

# exists <name>, gone <name>
exists() { xl domid "$1" >/dev/null 2>&1; }
gone() { ! exists "$1"; }

# alone: whether Domain 0 is the only domain. One that dies is there until the daemons have let go of its pages.
alone() { [ "$(xl list | wc -l)" = 2 ]; }

# state <name>: the guest's state as `xl list` shows it, without the dashes of what it is not.
state() { xl list "$1" | awk 'NR == 2 { gsub("-", "", $5); print $5 }'; }
# in_state <name> <pattern>
in_state() { [[ $(state "$1") == $2 ]]; }

# field <name> <column>: a number from `xl list`.
field() { xl list "$1" | awk -v column="$2" 'NR == 2 { print $column }'; }

# info <name>: what `xl info` says of it.
info() { xl info | awk -F ' *: ' -v name="$1" '$1 == name { print $2 }'; }

# up <domain> <number>: whether so many of its vCPUs are up.
up() { test "$(xl vcpu-list "$1" | awk 'NR > 1 && $4 != "-" && $5 !~ /p/' | wc -l)" = "$2"; }

# tenths <domain>: processor time it had so far, in tenths of a second.
tenths() { field "$1" 6 | tr -d .; }

# rate <domain> <seconds>: per cent of a processor that it gets. What reading the time takes itself is part of the time.
rate() {
    local before start
    before=$(tenths "$1")
    start=${EPOCHREALTIME/./}
    sleep "$2"
    echo $((($(tenths "$1") - before) * 10000000 / (${EPOCHREALTIME/./} - start)))
}

# free_memory: what the hypervisor has left or is scrubbing, in KiB (`xl info` rounds to MiB).
free_memory() {
    PYTHONPATH=/usr/lib/xen-4.17/lib/python python3 -c '
from xen.lowlevel.xc import xc
info = xc().physinfo()
print(info["free_memory"] + info["scrub_memory"])'
}

# regained <check> <seconds> <KiB>: passes when free memory is that much, to the page, within the time.
regained() {
    within "$2" free_memory_is "$3"
    check "$1" test "$(free_memory)" = "$3"
}
free_memory_is() { test "$(free_memory)" = "$1"; }

# type_in <name> <text>: types a line on the guest's console.
type_in() {
    local terminal
    terminal=$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty") || return 1
    printf '%s\n' "$2" >"$terminal"
}

# ask <name> <command> [seconds]: runs a command in the guest's shell; prints what it prints, has its status.
ask() {
    local log line asked=${EPOCHREALTIME/./}
    log=$(console_log "$1")
    # What is typed is echoed: the marks must look different there.
    type_in "$1" "echo BEGIN''-$asked; $2; s=\$?; echo; echo END''-$asked-\$s" || return 1
    within "${3-60}" grep -aq "^END-$asked-" "$log" || return 1
    line=$(tr -d '\r' <"$log" | sed -n "/^BEGIN-$asked\$/,/^END-$asked-/p")
    sed '1d;$d' <<<"$line"
    [ "${line##*END-"$asked"-}" = 0 ]
}

# migrate <name> [command of the receiver]: moves a guest. The receiver is a command, not another host.
migrate() {
    xl migrate -s '' "$1" "${2-xl migrate-receive}" || return
    arrived[$1]=--incoming
}

# moved <name> <domain number before>: whether the guest is another domain now.
moved() { [ "$(xl domid "$1")" != "$2" ]; }
