#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# What cannot be met is refused with a reason, and the host has lost nothing: configurations, a full host, malformed and
# random requests to the hypervisor.

. "$(dirname "$0")/lib.sh"

# hypercalls <check>...: lines of checks by requests that no tool would make, through the kernel's privcmd device.
hypercalls() {
    python3 - "$@" <<'PYTHON'
import ctypes, errno, fcntl, mmap, os, random, struct, sys

PRIVCMD_HYPERCALL = ord("P") << 8 | 48 << 16
DOMCTL, SYSCTL, VERSION = 36, 35, 0x15
NOBODY = 32000
device = os.open("/dev/xen/privcmd", os.O_RDWR)
# Room behind the record for answers that random requests send there.
memory = mmap.mmap(-1, 1 << 20)
record = ctypes.addressof(ctypes.c_char.from_buffer(memory))
memory.write(b"\0" * (1 << 20))

def hypercall(number, *arguments):
    words = list(arguments) + [0] * (5 - len(arguments))
    call = bytearray(struct.pack("6Q", number, *words))
    try:
        return fcntl.ioctl(device, PRIVCMD_HYPERCALL, call)
    except OSError as error:
        return -error.errno

def request(number, cmd, domain=None, payload=b"", version=VERSION):
    body = struct.pack("<II", cmd, version)
    if domain is not None:
        body += struct.pack("<HHI", domain, 0, 0)
    body += payload
    ctypes.memset(record, 0, 4096)
    ctypes.memmove(record, body, len(body))
    return hypercall(number, record)

def say(name, good, *detail):
    print(name, "PASS" if good else "FAIL", *detail)

def answers(name, expected, *arguments, **named):
    result = request(*arguments, **named)
    say(name, result == -expected, "" if result == -expected else f"gives {result}")

def versions(_):
    for version in (0, VERSION - 1, VERSION + 1, 0xffffffff):
        answers(f"domctl-version-{version:x}", errno.EACCES, DOMCTL, 5, 0, version=version)
    for version in (0, VERSION - 1, VERSION + 1, 0xffffffff):
        answers(f"sysctl-version-{version:x}", errno.EACCES, SYSCTL, 3, version=version)

def addresses(_):
    for name, address in (("null", 0), ("hypervisor", 0xffff830000000000), ("wild", 1 << 62), ("end", (1 << 64) - 8)):
        for number in (DOMCTL, SYSCTL):
            result = hypercall(number, address)
            say(f"address-{name}-{number}", result == -errno.EFAULT, f"gives {result}")

def unknown_domain(_):
    # All requests about a domain that is not there; 1 makes one, 5 gives the next one.
    wrong = [cmd for cmd in list(range(2, 5)) + list(range(6, 100)) if request(DOMCTL, cmd, NOBODY, b"\0" * 112) >= 0]
    say("nobody", not wrong, *wrong)

def unknown_requests(guest):
    wrong = {cmd: r for cmd in (0, 6, 26, 90, 99, 1000, 0xffffffff) if (r := request(DOMCTL, cmd, guest)) not in (-errno.ENOSYS, -errno.EOPNOTSUPP)}
    say("unknown-domctl", not wrong, wrong)
    wrong = {cmd: r for cmd in (0, 13, 40, 1000, 0xffffffff) if (r := request(SYSCTL, cmd)) not in (-errno.ENOSYS, -errno.EOPNOTSUPP)}
    say("unknown-sysctl", not wrong, wrong)

def bad_creations(_):
    # ssidref, handle, flags, iommu_opts, max_vcpus, max_evtchn_port, grant frames, maptrack frames, grant_opts,
    # vmtrace_size, cpupool, emulation, misc, and what is behind.
    names = ["flags", "iommu", "vcpus", "port", "frames", "maptrack", "options", "vmtrace", "pool", "emulation", "misc"]
    sound = [0, 0, 1, 1023, 64, 1024, 1, 0, 0, 0, 0]
    wrong = {
        "flags": [1 << 31, 0xffffffff], "iommu": [1, 0xffffffff], "vcpus": [0, 100000, 0xffffffff],
        "options": [0xf, 0xffffffff], "vmtrace": [4096], "pool": [77], "emulation": [0xffffffff], "misc": [1 << 31],
    }
    for name, values in wrong.items():
        for value in values:
            fields = [value if this == name else usual for this, usual in zip(names, sound)]
            body = struct.pack("<I16s2I4I5I", 0, b"x" * 16, *fields)
            result = request(DOMCTL, 1, 0, body)
            say(f"create-{name}-{value:x}", result < 0, "" if result < 0 else f"gives {result}")

def fuzz(guest):
    """Random requests about a domain that is destroyed afterwards; what must not happen is that the machine stops."""
    source = random.Random(4)
    numbers = [0, 1, 2, 3, 7, 64, 4095, 4096, 0x7fffffff, 0xffffffff, record, record + 4090, 1 << 47, 0xffff830000000000]
    # Not: making domains, the end of this one, and letting it run.
    commands = [cmd for cmd in range(6, 90) if cmd not in (27,)]
    for _ in range(2000):
        words = [source.choice(numbers) if source.random() < 0.8 else source.getrandbits(64) for _ in range(12)]
        request(DOMCTL, source.choice(commands), guest, struct.pack("<12Q", *words))
    say("fuzz-domctl", True)
    for _ in range(1000):
        # Not: what empties the console, debug keys, whose work is real, and what turns processors off.
        cmd = source.choice([cmd for cmd in range(30) if cmd not in (1, 7, 18)])
        words = [source.choice(numbers) for _ in range(12)]
        body = struct.pack("<12Q", *words)
        ctypes.memset(record, 0, 4096)
        request(SYSCTL, cmd, payload=body)
    say("fuzz-sysctl", True)

globals()[sys.argv[1]](int(sys.argv[2]))
PYTHON
}
run_hypercalls() {
    local name verdict detail
    while read -r name verdict detail; do
        if [ "$verdict" = PASS ]; then pass "$name"; else fail "$name" "$verdict $detail"; fi
    done < <(hypercalls "$@" 2>&1 || echo "$1-ends FAIL status $?")
}
lost_nothing() {
    check "$1-left-nothing" within 20 alone
    regained "$1-lost-nothing" 20 "$before"
}

# fill: makes guests until one more is refused; empty: destroys them.
fill() {
    count=0
    while config "fill$count" "memory = 200" && create "fill$count" -p >/tmp/full 2>&1; do
        count=$((count + 1))
        [ $count -lt 64 ] || break
    done
}
empty() {
    local index
    for index in $(seq 0 $((count - 1))); do
        xl destroy "fill$index" || return
    done
}

# What Domain 0 needs at most for others' events and grants, it keeps: the host is full once before memory is compared.
config plain
create plain -p >/dev/null
fill
empty >/dev/null
xl destroy plain
within 20 alone
sleep 2
before=$(free_memory)

config huge "memory = 100000"
refuse too-much-memory 'low memory|populate' xl create /tmp/huge.cfg
config many "vcpus = 4000"
refuse too-many-vcpus 'domain creation fail|vcpu' xl create /tmp/many.cfg
config kernelless "kernel = '/boot/nothing'"
refuse no-kernel '/boot/nothing.*No such file|No such file' xl create /tmp/kernelless.cfg
config directory "kernel = '/boot'"
refuse kernel-is-directory 'kernel' xl create /tmp/directory.cfg
head -c 100000 /boot/vmlinuz-cloud-amd64 >/tmp/half
config half "kernel = '/tmp/half'"
refuse half-a-kernel 'kernel|loader' xl create /tmp/half.cfg
config ramdiskless "ramdisk = '/boot/nothing'"
refuse no-ramdisk 'nothing.*No such file|No such file' xl create /tmp/ramdiskless.cfg
config diskless "disk = [ 'file:/tmp/nothing.img,xvda,w' ]"
refuse no-disk 'nothing.img' xl create /tmp/diskless.cfg
config phyless "disk = [ 'phy:/dev/nothing,xvda,w' ]"
refuse no-device '/dev/nothing' xl create /tmp/phyless.cfg
config baddisk "disk = [ 'file:/tmp/half,sdzz99,w' ]"
refuse bad-disk-name 'sdzz99|disk' xl create /tmp/baddisk.cfg
config bridgeless "vif = [ 'bridge=nothing0' ]"
refuse no-bridge 'bridge device nothing0|nothing0' xl create /tmp/bridgeless.cfg
echo 'name = ' >/tmp/broken.cfg
refuse bad-syntax 'syntax|parse' xl create /tmp/broken.cfg
refuse no-configuration 'nothing.cfg' xl create /tmp/nothing.cfg
config hvm "type = 'hvm'"
refuse no-hvm 'HVM|hvm|rror' xl create /tmp/hvm.cfg
config pvh "type = 'pvh'"
refuse no-pvh 'PVH|pvh|HVM|rror' xl create /tmp/pvh.cfg
lost_nothing configurations

for command in 'pause nobody' 'unpause nobody' 'destroy nobody' 'shutdown 4711' 'save nobody /tmp/save' 'mem-set nobody 64' \
    'vcpu-set nobody 1' 'console nobody' 'rename nobody somebody' 'sysrq nobody h' 'trigger nobody nmi' 'dump-core nobody /tmp/core'; do
    # shellcheck disable=SC2086 # words
    refuse "${command%% *}-unknown" 'invalid domain identifier|nobody is an invalid|cannot|fail|unable|rror' xl $command
done

# A full host: the last guest was refused, and the others live on.
config first "memory = 256"
check first create first
check first-boots ready first
fill
check fills test $count -ge 1
check full-says-why grep -Eq 'low memory|populate|memory' /tmp/full
check first-lives ask first true
check empties empty
check destroy-first xl destroy first
lost_nothing full-host

run_hypercalls versions 0
run_hypercalls addresses 0
run_hypercalls unknown_domain 0
run_hypercalls bad_creations 0
lost_nothing requests
check victim create plain -p
run_hypercalls unknown_requests "$(xl domid plain)"
run_hypercalls fuzz "$(xl domid plain)"
check victim-destroyed xl destroy plain
lost_nothing fuzz
finish
