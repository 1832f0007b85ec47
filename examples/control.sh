#!/usr/bin/env bash
# What the scripts beside it share: commands and questions to the control files of a mounted pool.
#
#   . control.sh                  it is sourced, and does nothing by itself
#
# A write to a control file is one command.  If it is refused the write itself fails, nothing has changed, and
# the last `Refused` line in .mirrorfs/events says why.  Environment: POLL, seconds between two looks while
# waiting (1); STALL, seconds without any progress after which waiting is given up (600).

POLL=${POLL:-1}
STALL=${STALL:-600}
me=${0##*/}
name='' control='' volume='' # set by open_volume
seen='' since=0              # what waiting saw last, and since when

say() { printf '%s: %s\n' "$me" "$*"; }

# usage CODE: print the head of the script that was called, and exit.
usage() {
    sed -n '/^set /q; 2,$ s/^# \{0,1\}//p' "$0"
    exit "$1"
}

die() {
    printf '%s: %s\n' "$me" "$*" >&2
    exit 1
}

# open_volume DIR NAME: what follows is about that volume of the pool mounted on DIR.
open_volume() {
    name=$2 control=$(realpath -ms -- "$1")/.mirrorfs
    volume=$control/volumes/$name
    [[ -f $control/mdstat ]] || die "no mirrorfs is mounted on $1; mount it first: mirrorfs mount POOL $1"
    [[ -d $volume ]] || die "no volume $name on $1; it has: $(volumes)"
    [[ $(<"$volume/array_state") != inactive ]] || die "$name is not running; why: mirrorfs status $1"
}

volumes() {
    local all=("$control"/volumes/*/)
    all=("${all[@]%/}")
    printf '%s' "${all[*]##*/}"
}

# tell FILE WORD…: give a command; die with the reason if it is refused.
tell() {
    local why
    try "$@" && return
    why=$(last Refused)
    die "${why#*[\'\"]: }" # the command goes first there, in quotes
}

# try FILE WORD…: give a command; fail if it is refused.
try() {
    local file=$1 word words=()
    shift
    for word; do # quoted where need be, as for a shell: paths may hold anything
        [[ $word && $word != *[!A-Za-z0-9_/.:=@+-]* ]] || word="'${word//\'/\'\\\'\'}'"
        words+=("$word")
    done
    { printf '%s\n' "${words[*]}" >"$volume/$file"; } 2>/dev/null
}

# last EVENT [BEGINNING]: print what follows that in the last event of the volume with it; empty if none.
last() {
    beginning="$1 $name ${2-}" awk '
        { sub(/^[^ ]* /, ""); begins = ENVIRON["beginning"] } # after the time
        index($0, begins) == 1 { text = substr($0, length(begins) + 1) }
        END { print text }' "$control/events"
}

# Legs.  Their numbers change hands when one replaces another, so a leg is followed by its UUID.

# legs: print the number, UUID and path of each leg, a line each.
legs() {
    local leg uuid path
    for leg in "$volume"/legs/*; do
        until uuid=$(<"$leg/uuid") && path=$(<"$leg/path") && [[ $(<"$leg/uuid") == "$uuid" ]]; do
            [[ -d $leg ]] || continue 2 # else it has just changed places with another: look again
        done 2>/dev/null
        printf '%s %s %s\n' "${leg##*/}" "$uuid" "$path"
    done
}

# find_leg WORD: print the UUID of the leg with that number, path or UUID; fail if there is none.
find_leg() {
    local number uuid path
    for _ in 1 2 3; do # a leg that takes another's number just now may be missed by one look
        while read -r number uuid path; do
            if [[ $number == "$1" || $uuid == "$1" || $path == "$(realpath -ms -- "$1")" ]]; then
                printf '%s\n' "$uuid"
                return
            fi
        done < <(legs)
    done
    return 1
}

# leg_fact UUID FILE: print what a control file of that leg says; fail if the leg is gone.
leg_fact() {
    local leg fact
    for leg in "$volume"/legs/* "$volume"/legs/* "$volume"/legs/*; do # as above
        # Looked at before and after: legs may have changed places in between.
        if [[ $(<"$leg/uuid") == "$1" ]] && fact=$(<"$leg/$2") && [[ $(<"$leg/uuid") == "$1" ]]; then
            printf '%s\n' "$fact"
            return
        fi
    done 2>/dev/null
    return 1
}

# is UUID WORD: whether a leg's state has that word, as in_sync, spare, faulty, missing, removed.
is() { [[ ,$(leg_fact "$1" state), == *,$2,* ]]; }

# is_idle_spare UUID: whether it is a hot spare that waits; one that is being recovered has a recovery_start.
is_idle_spare() { is "$1" spare && [[ $(leg_fact "$1" recovery_start) == none ]]; }

# wait_in_sync UUID: until that leg is in sync; die if it fails, or if nothing moves for STALL seconds.
wait_in_sync() {
    local path
    path=$(leg_fact "$1" path) || die "$name has no leg $1 any more"
    until is "$1" in_sync; do
        is "$1" spare || is "$1" in_sync || die "$path is $(leg_fact "$1" state): $(last Fail "$path ")"
        wait_a_little "$(leg_fact "$1" recovery_start || true)"
    done
}

# wait_a_little FACT: sleep; die if neither it nor the progress of the pass under way has moved for STALL seconds.
wait_a_little() {
    local action facts
    action=$(<"$volume/sync_action")
    facts="$action $(<"$volume/sync_completed") ${1-}"
    if [[ $facts != "$seen" ]]; then
        seen=$facts since=$SECONDS
    elif ((SECONDS - since >= STALL)); then
        die "$name: no progress for $STALL s, sync_action is $action; see mirrorfs status, then run me again"
    fi
    sleep "$POLL"
}
