#!/usr/bin/env bash
# Shows what mirrorfs does, on real files, in about a minute, and checks all that it claims.
#
#   examples/quickstart.sh [--keep]
#
# Makes a volume of two legs in a fresh folder, uses it, fails a leg and takes it back, kills the daemon in
# the middle of writes, mounts again, and compares everything byte by byte.  As root the volume carries an
# ext4 on a loop device; without root, or where there are no loop devices, files go into the image directly.
# Exit code 0 only if all held.  --keep leaves the folder.  TMPDIR says where it is made (/var/tmp).
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$root/.venv/bin/python3

SIZE=$((512 << 20))
PIECE=$((256 << 10)) # what the writer writes and fsyncs at a time
PIECES=400           # it never gets to its end: it is interrupted
KILL_AFTER=40        # of these pieces are acknowledged when the daemon is killed
BLOCK=4096
FIRST_PIECE=$((300 << 20)) # without ext4: where in the image the pieces go

keep='' tmp='' daemon='' writer='' loop='' ext4=''
steps=0

# Telling

step() { printf '\n%2d. %s\n' "$((steps += 1))" "$*"; }
note() { printf '    %s\n' "$*"; }
ok() { printf '    ok: %s\n' "$*"; }
die() {
    printf 'quickstart: FAILED: %s\n' "$*" >&2
    exit 1
}

# run COMMAND…: show it and run it.
run() {
    printf '    $ %s\n' "$*"
    timeout --foreground 180 "$@" || die "$1 ended with exit code $?"
}

# fact FILE KEY…: print one value of a JSON file.
fact() {
    "$python" -I -S -c '
import json, sys
value = json.load(open(sys.argv[1]))
for key in sys.argv[2:]:
    value = value[int(key) if isinstance(value, list) else key]
print(value)' "$@"
}

live() { fact mnt/.mirrorfs/status.json volumes 0 "$@"; }

share() { awk -v part="$1" -v all="$2" 'BEGIN { printf "%.1f %%", all ? 100 * part / all : 0 }'; }

# Cleaning up, at any time

detach() {
    if [[ $ext4 ]]; then
        umount "$tmp/files" || umount -l "$tmp/files"
        ext4=
    fi
    if [[ $loop ]]; then
        losetup -d "$loop"
        local i
        for ((i = 0; i < 100; i++)); do # it is let go of when its last user is gone
            losetup "$loop" &>/dev/null || break
            sleep 0.1
        done
        loop=
    fi
}

mounted() { grep -qF " $tmp/$1 " /proc/self/mountinfo; }

cleanup() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    [[ $tmp ]] || exit "$code"
    if [[ $writer ]]; then
        kill "$writer" 2>/dev/null
        wait "$writer" 2>/dev/null
    fi
    detach 2>/dev/null
    if mounted mnt; then
        if ! timeout 60 mirrorfs umount "$tmp/pool" 2>/dev/null; then
            kill_daemon
            umount -l "$tmp/mnt" 2>/dev/null || fusermount3 -uz "$tmp/mnt"
        fi
    fi
    cd /
    if grep -qF " $tmp/" /proc/self/mountinfo; then
        echo "quickstart: $tmp still has something mounted; it is left as it is" >&2
    elif [[ $keep ]]; then
        printf '\nLeft for you to look at: %s\n' "$tmp"
    else
        rm -rf --one-file-system -- "$tmp"
    fi
    exit "$code"
}

kill_daemon() {
    # It has our folder in its environment; a process that has come to bear its number has not.
    if [[ $daemon ]] && grep -qaF "PWD=$tmp" "/proc/$daemon/environ" 2>/dev/null; then
        kill -KILL "$daemon"
    fi
}

# Files: source/ is what the volume should have; each change is made to both

snapshot() { # BYTES FILES: at most so much
    local from
    from=("$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')")
    [[ ! -d /usr/lib/python3 ]] || from+=(/usr/lib/python3)
    find "${from[@]}" -type f -size -4096k -printf '%s %p\n' | sort -k 2 |
        awk -v bytes="$1" -v files="$2" '{ all += $1 } all <= bytes && NR <= files { sub(/^[0-9]+ \//, ""); print }' >list
    [[ -s list ]] || die 'no files found to copy'
    mkdir source
    tar -C / --verbatim-files-from -T list -cf - | tar -C source -xf -
    sed -n '101,140p' list >overwritten
    sed -n '201,240p' list >deleted
    seq -f 'new/%g' 0 39 >new
}

# change DIR: overwrite some files in place, delete some, make some new ones.
change() {
    local file
    while IFS= read -r file; do
        dd if=random of="$1/$file" bs=64K iflag=count_bytes count="$(stat -c %s "$1/$file")" conv=notrunc status=none
    done <overwritten
    while IFS= read -r file; do
        rm "$1/$file"
    done <deleted
    mkdir "$1/new"
    while IFS= read -r file; do
        dd if=random of="$1/$file" bs=40000 skip="${file#new/}" count=1 status=none
    done <new
}

# piece NUMBER: write one piece and return when it is durable.
piece() {
    if [[ $mode == ext4 ]]; then
        dd if=random of="files/written/$1" bs="$PIECE" skip="$(($1 % 64))" count=1 conv=fsync status=none
    else
        dd if=random of=mnt/disk bs="$PIECE" skip="$(($1 % 64))" count=1 seek="$((FIRST_PIECE / PIECE + $1))" \
            conv=notrunc,fsync status=none
    fi
}

piece_is_whole() {
    if [[ $mode == ext4 ]]; then
        cmp -s -n "$PIECE" -i "$(($1 % 64 * PIECE)):0" random "files/written/$1"
    else
        cmp -s -n "$PIECE" -i "$(($1 % 64 * PIECE)):$((FIRST_PIECE + $1 * PIECE))" random mnt/disk
    fi
}

write_pieces() {
    local number
    for ((number = 0; number < PIECES; number++)); do
        piece "$number" 2>writer.log || return 0
        echo "$number" >>acknowledged
    done
}

# With ext4 on a loop device

attach() {
    loop=$(losetup -f --show --direct-io=on mnt/disk)
    note "mnt/disk is now $loop"
}

mount_ext4() {
    mkdir -p files
    run mount "$loop" files
    ext4=yes
}

sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

fsck() {
    local code=0
    e2fsck -fy "$loop" >fsck.log 2>&1 || code=$?
    if ((code > 1)); then
        cat fsck.log
        die "e2fsck -fy ended with exit code $code"
    fi
    { grep -i journal fsck.log || echo 'e2fsck -fy: no journal to replay'; } | head -n 1 | sed 's/^/    /'
    if ! e2fsck -fn "$loop" >fsck.log 2>&1; then
        cat fsck.log
        die 'e2fsck -fn is not content'
    fi
    ok "e2fsck -fn is content:$(tail -n 1 fsck.log | sed 's/^[^:]*://')"
}

# Without it: files one after the other in the image; `layout` has a line "block size path" for each

store() { # LIST
    local file size
    while IFS= read -r file; do
        size=$(stat -c %s "source/$file")
        dd if="source/$file" of=mnt/disk bs=1M oflag=seek_bytes seek="$((next_block * BLOCK))" conv=notrunc status=none
        printf '%s %s %s\n' "$next_block" "$size" "$file" >>layout
        next_block=$((next_block + size / BLOCK + 1))
    done <"$1"
    sync mnt/disk
}

change_image() {
    local block size file
    while read -r block size file; do
        if [[ ! -e source/$file ]]; then # deleted: zeros
            dd if=/dev/zero of=mnt/disk bs=64K iflag=count_bytes count="$size" \
                oflag=seek_bytes seek="$((block * BLOCK))" conv=notrunc status=none
        elif grep -qxF -- "$file" overwritten; then
            dd if="source/$file" of=mnt/disk bs=64K oflag=seek_bytes seek="$((block * BLOCK))" conv=notrunc status=none
        fi
    done <layout
    store new
}

image_sums() { # what should be, to the file $1; what is, to $2
    local block size file
    while read -r block size file; do
        if [[ -e source/$file ]]; then
            sha256sum <"source/$file"
        else
            head -c "$size" /dev/zero | sha256sum
        fi >>"$1"
        dd if=mnt/disk bs=1M iflag=skip_bytes,count_bytes skip="$((block * BLOCK))" count="$size" status=none |
            sha256sum >>"$2"
    done <layout
}

# All of it

mount_pool() {
    mkdir -p mnt
    run mirrorfs mount pool mnt
    daemon=$(fact mnt/.mirrorfs/status.json pid)
    note "the daemon has process id $daemon"
}

wait_until_clean() {
    local i
    for ((i = 0; i < 100; i++)); do
        [[ $(live chunks dirty) != 0 ]] || return 0
        sleep 0.1
    done
    note "still dirty after a while: $(live chunks dirty) chunks"
}

while (($#)); do
    case $1 in
    --keep) keep=yes ;;
    -h | --help)
        sed -n '2,/^set/ { /^# \{0,1\}/ s///p }' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *)
        echo "usage: $0 [--keep]" >&2
        exit 1
        ;;
    esac
    shift
done

trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

step 'Set up: packages and the virtual environment, where anything is missing'
"$root/tools/setup.sh" quickstart
export PATH=$root/.venv/bin:$PATH
mode=image
if ((EUID)); then
    note 'not root, so no loop device and no ext4: files go straight into the image'
elif ! losetup -f &>/dev/null; then
    note 'no loop devices here, so no ext4: files go straight into the image'
else
    mode=ext4
fi
ok "$(mirrorfs --version), $("$python" -V)"

step 'Make a pool with a volume of 512 MiB on two legs (on one disk here, hence the warning)'
tmp=$(cd "$(mktemp -d -p "${TMPDIR:-/var/tmp}" mirrorfs-quickstart.XXXXXX)" && pwd -P)
cd "$tmp"
note "in $tmp"
free=$(df --output=avail -B 1 . | tail -n 1)
((free > 1 << 30)) || die "$tmp has only $free bytes free; set TMPDIR to a place that has 1 GiB"
run mirrorfs create pool disk --size 512M --leg leg0 --leg leg1

step 'Mount the pool ("python mount.py pool mnt" does the same)'
mount_pool
echo 1 >mnt/.mirrorfs/volumes/disk/bitmap/time_base
note 'chunks count as clean 1 to 2 seconds after their last write (by default 5 to 10)'

head -c $((64 * PIECE)) /dev/urandom >random
if [[ $mode == ext4 ]]; then
    snapshot 80000000 4000
    step "Make an ext4 on a loop device, copy $(wc -l <list) files of Python's library into it"
    attach
    run mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$loop"
    mount_ext4
    run cp -a source files/tree
    mkdir files/written
    sync -f files
else
    snapshot 20000000 400
    step "Write $(wc -l <list) files of Python's library into the image, one after the other"
    next_block=0
    store list
fi
file_bytes=$(find source -type f -printf '%s\n' | awk '{ all += $1 } END { print all }')
ok "$file_bytes bytes of files copied in"

wait_until_clean
step 'Fail leg 1, then change files: the volume goes on with leg 0 and tracks what leg 1 lacks'
run mirrorfs fail pool disk 1
change source
if [[ $mode == ext4 ]]; then
    change files/tree
    sync -f files
else
    change_image
fi
ok "$(wc -l <overwritten) files overwritten, $(wc -l <new) new, $(wc -l <deleted) deleted"
modified=$(($(live chunks modified) * $(live chunk_size)))
written=$((($(live chunks total) - $(live chunks unwritten)) * $(live chunk_size)))

step 'Take leg 1 back: only what changed is copied to it'
run mirrorfs re-add pool disk 1
run mirrorfs wait pool --timeout 120
recovered=$(live recovered_bytes)
ok "recovery copied $recovered of $SIZE bytes ($(share "$recovered" $SIZE)); $modified were marked as modified"
((recovered > 0 && recovered < written)) || die "recovery copied $recovered bytes, yet only $modified of $written had changed"
[[ $(live degraded) == 0 ]] || die 'the volume is still degraded'

step 'Kill the daemon (SIGKILL) in the middle of writes'
wait_until_clean # so that what is dirty then is what is being written then
touch acknowledged
write_pieces &
writer=$!
for ((i = 0; $(wc -l <acknowledged) < KILL_AFTER; i++)); do
    kill -0 "$writer" 2>/dev/null || die "the writer ended early: $(cat writer.log)"
    ((i < 1200)) || die 'the writer is too slow'
    sleep 0.05
done
run kill -KILL "$daemon"
daemon=
wait "$writer"
writer=
acknowledged=$(wc -l <acknowledged)
((acknowledged < PIECES)) || die 'the writer had ended before the daemon was killed'
ok "the writer was interrupted: $acknowledged pieces of $PIECE bytes were written and fsynced"
detach 2>/dev/null
run mirrorfs umount pool
timeout 30 flock pool/lock true || die 'the killed daemon still holds the pool'

step 'Read from the legs, with nobody using them, how much is dirty'
dirty=0
for leg in leg0 leg1; do
    mirrorfs examine --json "$leg" >examined
    chunk=$(fact examined 0 chunk_size)
    count=$(fact examined 0 chunks dirty)
    used=$(($(fact examined 0 chunks total) - $(fact examined 0 chunks unwritten)))
    note "$leg: $count of $used chunks written so far are dirty, $((count * chunk)) bytes"
    ((count <= dirty)) || dirty=$count
done
((dirty > 0)) || die 'nothing is dirty after a kill in the middle of writes'

step 'Mount again: only dirty chunks are made equal'
mount_pool
run mirrorfs wait pool --timeout 120
resynced=$(live resynced_bytes)
ok "resync copied $resynced of $SIZE bytes ($(share "$resynced" $SIZE)); $((dirty * chunk)) were dirty"
((resynced <= dirty * chunk)) || die "resync copied $resynced bytes, but only $((dirty * chunk)) were dirty"

if [[ $mode == ext4 ]]; then
    step 'fsck: the first run replays the journal, the second has nothing to mend'
    attach
    fsck
    mount_ext4
fi

step 'Compare every file with its source, by SHA-256'
if [[ $mode == ext4 ]]; then
    sums source >wanted
    sums files/tree >got
else
    image_sums wanted got
fi
cmp -s wanted got || {
    diff wanted got | head -n 20
    die 'files differ from their sources'
}
ok "all $(wc -l <got) files are as they should be"
while read -r number; do
    piece_is_whole "$number" || die "piece $number was fsynced before the kill, but is not whole"
done <acknowledged
ok "all $acknowledged pieces that were fsynced before the kill are there"

step 'Unmount everything, compare the legs byte by byte'
detach
run mirrorfs umount pool
daemon=
offset=$(fact examined 0 data_offset)
run cmp -i "$offset" -n "$SIZE" leg0 leg1
ok "the data of both legs is the same, all $SIZE bytes"

row() { printf '    %-44s %12s   %s\n' "$@"; }
printf '\nAll held.  What was copied, in bytes:\n\n'
row 'the volume' "$SIZE" '512 MiB'
row 'files copied in at first' "$file_bytes" "into each of 2 legs"
row 'recovery of leg 1 after it was away' "$recovered" "$(share "$recovered" $SIZE) of the volume; marked as modified: $modified"
row 'resync after SIGKILL in the middle of writes' "$resynced" "$(share "$resynced" $SIZE) of the volume; dirty: $((dirty * chunk))"
