#!/usr/bin/env bash
# A virtual machine whose disk is a mirrored image loses a leg while it writes, and does not notice.
#
#   examples/vm/run.sh [--log FILE] DIR NAME LEG
#
# DIR is where the pool is mounted, NAME a volume that was never written to (the guest makes a filesystem on it)
# of 64 MiB or more, LEG the path, UUID or number of one of its legs.  qemu boots a small guest (initramfs.sh), which
# writes files to an ext4 and syncs each.  Meanwhile LEG is failed by its control file.  When the guest has powered off
# the leg is taken back, which copies what it lacks, and all legs are compared.
#
# FILE gets what the guest says on its serial console.  Environment: ACCEL, what runs the guest (tcg, emulation, which
# works everywhere; kvm is faster).  Exit codes: 0 all held, 1 not so, 2 usage.
#
# The disk of a VM of your own needs the same words as here, whoever starts it (libvirt-disk.xml beside this):
#   cache=none    O_DIRECT, so that there are many requests under way, and nothing is kept in a cache twice; what
#                 the guest flushes is synced on all legs.  Never cache=unsafe.
#   aio=native    as deep a queue as the guest's; it needs cache=none
#   discard=unmap the guest's fstrim frees space on the legs
# and the mount option allow_other if qemu runs as another user than the mount.
set -euo pipefail

here=$(dirname "$(realpath -- "${BASH_SOURCE[0]}")")
# shellcheck source=examples/control.sh
. "$here/../control.sh"
FILES=60    # that the guest writes, of 256 KiB
FAIL_AFTER=10 # of them are synced when the leg is failed
BOOT=120    # seconds in which the guest must be that far, and again that it may take to its end

tmp='' qemu=''
cleanup() {
    [[ -z $qemu ]] || kill -KILL "$qemu" 2>/dev/null || true
    [[ -z $tmp ]] || rm -rf "$tmp"
}

boot() {
    qemu-system-x86_64 -accel "${ACCEL:-tcg}" -m 256 -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$tmp/vmlinuz" -initrd "$tmp/initrd" -append "console=ttyS0 quiet panic=-1 files=$FILES" \
        -serial "file:$log" \
        -drive "file=${image//,/,,},format=raw,if=virtio,cache=none,aio=native,discard=unmap" </dev/null &
    qemu=$!
}

# await TEXT: until the guest has said it; die if it ends before, or does not within BOOT seconds.
await() {
    local since=$SECONDS
    until grep -q -- "$1" "$log" 2>/dev/null; do
        kill -0 "$qemu" 2>/dev/null || grep -q -- "$1" "$log" || guest_failed "$1" 'ended'
        ((SECONDS - since < BOOT)) || guest_failed "$1" "is not so far within $BOOT s"
        sleep 0.05
    done
}

guest_failed() {
    tail -n 20 "$log" >&2
    die "the guest $2; it should have said '$1'"
}

compare_legs() {
    tell sync_action check
    while [[ $(<"$volume/sync_action") == check ]]; do wait_a_little; done
    [[ $(<"$volume/mismatch_cnt") == 0 ]] || die "legs differ: $(<"$volume/mismatches")"
    say "compared: $(last RebuildFinished 'check, ')"
}

log=''
while [[ ${1-} == -* ]]; do
    case $1 in
    --log) log=${2-} ;;
    -h | --help) usage 0 ;;
    *) usage 2 >&2 ;;
    esac
    shift 2 || usage 2 >&2
done
(($# == 3)) || usage 2 >&2
command -v qemu-system-x86_64 >/dev/null || die 'qemu is not there; on Debian: apt-get install qemu-system-x86'
open_volume "$1" "$2"
image=$control/../$name
leg=$(find_leg "$3") || die "$name has no leg $3"
is "$leg" in_sync || die "leg $3 is $(leg_fact "$leg" state)"
written=$(($(stat -c %b "$image") * 512))
((written == 0)) || die "$name has $written bytes of something; take a new volume, since the guest overwrites it"

trap cleanup EXIT
tmp=$(mktemp -d)
log=${log:-$tmp/console}
: >"$log"
"$here/initramfs.sh" --program /sbin/mke2fs "$here/guest-init" "$tmp"

boot
await 'guest: has an ext4'
say 'the guest has booted and made an ext4'
await "guest: wrote $FAIL_AFTER "
tell fail "$leg"
say "failed $(leg_fact "$leg" path) after $(grep -c 'guest: wrote' "$log") of $FILES files"
await 'guest: done'
wait "$qemu" || die "qemu ended with exit code $?"
qemu=''
say "the guest has written all $FILES files and powered off"

tell re-add "$leg"
wait_in_sync "$leg"
say "the leg is back: $(last RebuildFinished "$(leg_fact "$leg" path) ")"
compare_legs
