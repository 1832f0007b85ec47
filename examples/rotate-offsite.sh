#!/usr/bin/env bash
# Keeps a third leg off-site: once a week it comes back, gets what has changed since, and leaves again.
#
#   examples/rotate-offsite.sh in    DIR NAME LEG     it is here: bring it up to date
#   examples/rotate-offsite.sh out   [--freeze COMMAND --thaw COMMAND] DIR NAME LEG     let it go
#   examples/rotate-offsite.sh cycle [--freeze COMMAND --thaw COMMAND] DIR NAME LEG     in, then out
#
# DIR is where the pool is mounted, NAME the volume, LEG the leg's path, UUID or number.  Make the leg once, as
# a leg more than the two that stay:  echo /media/offsite/vm1.leg >DIR/.mirrorfs/volumes/NAME/add
#
# While it is away the volume is degraded by one leg: that is what has it remember (in the intent log, over
# restarts too) which chunks are written, so that only those are copied when the leg is back.  Do not lower
# raid_disks, and have no hot spare, which would take the leg's place; `out` refuses where there is one.
#
# The leg leaves with all that was acknowledged by then, as after a power cut.  --freeze and --thaw run around
# that moment and make its filesystem clean, too:  --freeze 'fsfreeze -f /srv/data' --thaw 'fsfreeze -u /srv/data'
# (a VM: virsh domfsfreeze vm1).  Off-site it is read by a loop device at its data offset (mirrorfs examine):
#   losetup --find --show --read-only --offset 1048576 vm1.leg
#
# Safe to run again at any time.  Exit codes: 0 done, 1 refused or failed, 2 usage.
#
# Saturday night, with the disk plugged in on Friday; as a line of /etc/cron.d, and as a systemd timer:
#   0 1 * * 6  root  mount /media/offsite && /usr/local/lib/mirrorfs/rotate-offsite.sh cycle /srv/images vm1 /media/offsite/vm1.leg && umount /media/offsite
#   OnCalendar=Sat 01:00     with a service of Type=oneshot, RequiresMountsFor=/srv/images /media/offsite, ExecStart= as above
set -euo pipefail

here=$(dirname "$(realpath -- "${BASH_SOURCE[0]}")")
# shellcheck source=examples/control.sh
. "$here/control.sh"
STAY=2 # legs in sync that the others must be when one goes

come_in() {
    case ,$(leg_fact "$leg" state), in
    *,in_sync,*)
        say "$path is in sync already"
        return
        ;;
    *,spare,*) ;; # an earlier run took it back
    *)
        [[ -e $path ]] || die "$path is not there; is its disk mounted?"
        # One that was missing may be taken back by itself at this very moment, and is busy then.
        try re-add "$leg" || is "$leg" spare || is "$leg" in_sync || tell re-add "$leg"
        ;;
    esac
    say "bringing $path up to date"
    wait_in_sync "$leg"
    say "$path: $(last RebuildFinished "$path ")"
}

go_out() {
    if is "$leg" removed; then
        say "$path is out already"
        return
    fi
    is "$leg" in_sync || is "$leg" faulty || die "$path is $(leg_fact "$leg" state); bring it in first"
    if is "$leg" in_sync; then
        check_others
        run_hook "$freeze"
        trap 'run_hook "$thaw"' EXIT
        # What callers have written goes to the disks of all legs; after `fail` none goes to this one.
        sync -- "$control/../$name"
        tell fail "$leg"
        trap - EXIT
        run_hook "$thaw"
    fi
    tell remove "$leg"
    sync -- "$path" || die "$path could not be written back: do not trust it; bring it in again"
    say "$path has left, with all that was written until $(date '+%F %T'); its disk may be unmounted"
}

# check_others: refuse to let the leg go where the volume would be left alone, or a spare would replace it.
check_others() {
    local number uuid there in_sync=0
    while read -r number uuid there; do
        if [[ $uuid != "$leg" ]] && is "$uuid" in_sync; then
            in_sync=$((in_sync + 1))
        elif is_idle_spare "$uuid"; then
            die "leg $number, $there, is a hot spare: it would take this leg's place; remove it"
        fi
    done < <(legs)
    ((in_sync >= STAY)) || die "$name would be left with $in_sync legs in sync; wanted are $STAY"
    ! grep -q ' spare$' "$control/spares" || die "the pool has shared spares: one would take this leg's place"
    [[ $(<"$volume/bitmap/location") != none ]] ||
        say "$name has no intent log, so all will be copied when the leg is back" >&2
}

run_hook() { [[ -z $1 ]] || bash -c "$1" || die "this failed: $1"; }

verb=${1-} freeze='' thaw=''
case $verb in
in | out | cycle) shift ;;
-h | --help) usage 0 ;;
*) usage 2 >&2 ;;
esac
while [[ ${1-} == -* ]]; do
    case $1 in
    --freeze) freeze=${2-} ;;
    --thaw) thaw=${2-} ;;
    *) usage 2 >&2 ;;
    esac
    shift 2 || usage 2 >&2
done
(($# == 3)) || usage 2 >&2
[[ ${freeze:+x} == "${thaw:+x}" ]] || die '--freeze and --thaw go together'
open_volume "$1" "$2"
leg=$(find_leg "$3") ||
    die "$name has no leg $3; if it is to be one: echo $(realpath -ms -- "$3") >$volume/add"
path=$(leg_fact "$leg" path)
[[ $verb == out ]] || come_in
[[ $verb == in ]] || go_out
