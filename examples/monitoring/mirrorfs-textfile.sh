#!/bin/sh
# Writes what mounted pools say of themselves where node_exporter's textfile collector finds it: a file a pool.
#
#   mirrorfs-textfile.sh DIRECTORY MOUNTPOINT...
#
# A file cannot be scraped by HTTP, so run this as often as new figures are wanted, for example from cron:
#
#   * * * * * root mirrorfs-textfile.sh /var/lib/prometheus/node-exporter /srv/vms /srv/scratch
#
# Where a pool does not answer, its file says `mirrorfs_up 0` and nothing else: old figures would look well.
# Exit code: 0, also where a pool does not answer; 1 where a file cannot be written; 2 for wrong usage.
set -u
umask 022
patience=100 # tenths of a second

if [ $# -lt 2 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
directory=$1
shift

# Write the metrics of a mount to a file.  One that hangs may keep its reader from being killed even, so nobody
# waits for that; and no other is begun while it is there, which the lock sees to.
read_metrics() { # MOUNTPOINT FILE LOCK
    {
        flock -n "$3" cat "$1/.mirrorfs/metrics" >"$2"
        echo $? >"$2.end"
    } >/dev/null 2>&1 & # cron waits for who has its pipe
    tenths=0
    until [ -s "$2.end" ]; do
        [ $tenths -lt $patience ] || return 1
        tenths=$((tenths + 1))
        sleep 0.1
    done
    [ "$(cat "$2.end")" = 0 ]
}

say_down() { # MOUNTPOINT
    escaped=$(printf %s "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')
    echo '# HELP mirrorfs_up Whether the pool is served.'
    echo '# TYPE mirrorfs_up gauge'
    echo "mirrorfs_up{mountpoint=\"$escaped\"} 0"
}

failed=0
work=$(mktemp -d "$directory/.mirrorfs.XXXXXX") || exit 1 # the same filesystem, so that mv is one step
trap 'rm -rf "$work"' EXIT

for mountpoint; do
    name=$(printf %s "$mountpoint" | tr -c 'A-Za-z0-9' _)
    file=mirrorfs$name.$(printf %s "$mountpoint" | cksum | cut -d' ' -f1).prom
    if ! read_metrics "$mountpoint" "$work/$file" "$directory/.$file.lock"; then
        say_down "$mountpoint" >"$work/down" && mv "$work/down" "$work/$file"
    fi
    # In one step: node_exporter must never find half a file.
    mv "$work/$file" "$directory/$file" || failed=1
done
exit $failed
