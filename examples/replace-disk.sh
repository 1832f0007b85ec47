#!/usr/bin/env bash
# Replaces a disk: a new leg takes the place of an old one, which serves until then if it still can.
#
#   examples/replace-disk.sh [--force] DIR NAME OLD NEW
#
# DIR is where the pool is mounted, NAME the volume.  OLD is the leg's path or UUID (not its number, which the
# new leg takes over), working, failed or gone; NEW is a block device, or a file, which is made if need be.
# --force overwrites what NEW holds.  At the end OLD is taken out of the volume and its disk may be pulled.
#
# Safe to run again at any time: what an earlier run began goes on.  The data are mirrored throughout if they
# were before.  Exit codes: 0 replaced, 1 refused or failed (what was in sync is so still), 2 usage.
#
# It may take hours, so have it survive your login, and all volumes of one disk in one go:
#   systemd-run --unit=replace-vm1 /usr/local/lib/mirrorfs/replace-disk.sh /srv/images vm1 /srv/disk2/vm1.leg /srv/disk4/vm1.leg
#   for vm in vm1 vm2 vm3; do replace-disk.sh /srv/images $vm /srv/disk2/$vm.leg /srv/disk4/$vm.leg || break; done
# By a timer, for disks of which something else said so (OnCalendar=, or a crontab line), a queue of such lines:
#   */10 * * * *  root  flock -n /run/replace.lock xargs -r -a /etc/mirrorfs/replace.list -L 1 /usr/local/lib/mirrorfs/replace-disk.sh
set -euo pipefail

here=$(dirname "$(realpath -- "${BASH_SOURCE[0]}")")
# shellcheck source=examples/control.sh
. "$here/control.sh"

force=()
while [[ ${1-} == -* ]]; do
    case $1 in
    --force) force=(force) ;;
    -h | --help) usage 0 ;;
    *) usage 2 >&2 ;;
    esac
    shift
done
(($# == 4)) || usage 2 >&2
[[ $3 == *[!0-9]* ]] || die "$3: a leg's number will be the new leg's in the end; name OLD by its path or UUID"
open_volume "$1" "$2"
old=$(find_leg "$3") || old=
path=$(realpath -ms -- "$4")

if new=$(find_leg "$path") && ! is_idle_spare "$new"; then
    [[ $old != "$new" ]] || die "OLD and NEW are the same leg, $path"
    say "$path is a leg of $name already; going on"
else
    [[ $old ]] || die "$name has no leg $3; it has: $(legs | sed 's/^[^ ]* [^ ]* //' | paste -sd ' ')"
    tell replace "$old" "$path" "${force[@]}"
    new=$(find_leg "$path")
    say "copying to $path; how far it is: cat $control/mdstat"
fi
wait_in_sync "$new"

if [[ $old ]] && is "$old" in_sync; then
    die "$path is in sync, but not in the place of $3, which is a leg beside it; nothing was taken out"
elif [[ $old ]] && { is "$old" faulty || is "$old" missing; }; then
    tell remove "$old"
fi
copied=$(last RebuildFinished "$path ")
say "$path is in sync${copied:+ ($copied)}; $name lacks $(<"$volume/degraded") legs"
say "the disk of $3 may be pulled"
