# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# For the scripts beside this one, besides lib.sh.

# row <name> <number>: one value; a row may come several times.
row() {
    echo "BENCH $1 $2"
    [[ $2 =~ ^-?[0-9.]+$ ]] || fail "$1" "no number: $2"
}

# Whether a second is a number of instructions: then one short run says everything.
once() { grep -q philoxen.bench=once /proc/cmdline; }

# fetch <guest> <program>: puts a program of ours into the guest's /tmp.
fetch() {
    ask "$1" "wget -q -O /tmp/$2 http://192.168.90.1/run/philoxen/$2 && chmod +x /tmp/$2" >/dev/null || fail "$2"
}
