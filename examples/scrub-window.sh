#!/usr/bin/env bash
# Compares all legs of a volume once a month, at night: stops at the end of the night, goes on in the next one.
#
#   examples/scrub-window.sh --until TIME [--every DAYS] [--state FOLDER] DIR NAME
#
# DIR is where the pool is mounted, NAME the volume.  TIME is what date(1) understands (05:00; 'now + 4 hours').
# Run it every night: it begins a check if the last one that came to its end is DAYS old (28), goes on with one
# that did not, and else does nothing.  How far a check is mirrorfs knows itself (sync_min); FOLDER
# (/var/lib/mirrorfs/scrubs) has a file a volume, whose time says when the last one ended.
#
# Nothing is rewritten: where legs differ is listed, and how to repair it.  Exit codes: 0 no differences so far,
# 1 refused or failed, 2 usage, 4 legs differ.
#
# Every night from one to five; as a line of /etc/cron.d, and as a systemd timer:
#   0 1 * * *  root  /usr/local/lib/mirrorfs/scrub-window.sh --until 05:00 /srv/images vm1
#   OnCalendar=01:00     with a service of Type=oneshot, RequiresMountsFor=/srv/images, ExecStart= as above
set -euo pipefail

here=$(dirname "$(realpath -- "${BASH_SOURCE[0]}")")
# shellcheck source=examples/control.sh
. "$here/control.sh"
begun=''

sync_action() { printf '%s\n' "$(<"$volume/sync_action")"; }

# scrub_until SECOND: have a check run until then or until it ends; fail if it did not come to its end.
scrub_until() {
    local action
    while (($(date +%s) < $1)); do
        action=$(sync_action)
        case $action in
        check) begun=yes ;; # ours, or one that went on by itself after a restart
        idle)
            [[ -z $begun ]] || break
            begin
            continue
            ;;
        frozen) die "$name is frozen: somebody wants no pass to run (echo idle >$volume/sync_action)" ;;
        esac # else a resync, recovery or repair goes first; a check that was begun goes on by itself after it
        sleep "$POLL"
    done
    # One that came to its end has the next one begin at 0; where it was interrupted or failed it says so.
    [[ $begun && $(sync_action) != check && $(<"$volume/sync_min") == 0 ]] &&
        [[ $(last RebuildFinished check) != ' '* ]]
}

begin() {
    local from
    from=$(<"$volume/sync_min")
    if try sync_action check; then
        begun=yes
        say "checking $name from sector $from of $(sectors)"
    elif [[ $(sync_action) == idle ]]; then
        tell sync_action check # which says why not
    fi
}

sectors() { echo $(($(<"$volume/size") / 512)); }

# end_pass: a check that is under way or waits ends, and the next one begins where it is.
end_pass() {
    trap - EXIT
    case $begun$(sync_action) in
    yesidle | yesfrozen) ;; # has ended
    yes*) tell sync_action idle ;;
    esac
}

report() {
    local places
    places=$(<"$volume/mismatches")
    if [[ $places ]]; then
        say 'legs differ here (offset, length, legs and digests of what they hold):' >&2
        printf '%s\n' "$places" >&2
        say "to rewrite that from what most legs hold: echo repair >$volume/sync_action" >&2
        say "or from what leg N holds: echo 'repair N' >$volume/sync_action" >&2
        exit 4
    fi
}

until='' every=28 state=/var/lib/mirrorfs/scrubs
while [[ ${1-} == -* ]]; do
    case $1 in
    --until) until=${2-} ;;
    --every) every=${2-} ;;
    --state) state=${2-} ;;
    -h | --help) usage 0 ;;
    *) usage 2 >&2 ;;
    esac
    shift 2 || usage 2 >&2
done
[[ $# == 2 && $until && $every != *[!0-9]* ]] || usage 2 >&2
end=$(date -d "$until" +%s) || usage 2 >&2
((end > $(date +%s))) || end=$(date -d "tomorrow $until" +%s) || usage 2 >&2
open_volume "$1" "$2"
mkdir -p -- "$state"
stamp=$state/$(<"$volume/uuid")

if [[ $(sync_action) != check && $(<"$volume/sync_min") == 0 && -e $stamp ]] &&
    (($(date +%s) - $(date -r "$stamp" +%s) < every * 86400)); then
    say "$name was checked on $(date -r "$stamp" +%F)"
    report
    exit
fi
trap end_pass EXIT
if scrub_until "$end"; then
    trap - EXIT
    touch -- "$stamp"
    say "$name is checked$(last RebuildFinished check)"
elif [[ -z $begun ]]; then
    say "$name is not checked: a $(sync_action) was under way all the time"
else
    end_pass
    say "$name is checked up to sector $(<"$volume/sync_min") of $(sectors); the next run goes on there"
fi
report
