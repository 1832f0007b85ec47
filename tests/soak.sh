#!/usr/bin/env bash
# Searches for lost writes for as long as it is told, on all cores, with seeds never used before.
#
#   tests/soak.sh --minutes N                 all of it
#   tests/soak.sh --minutes N --random-only   only the first part
#
# First random runs for N minutes.  Then, which takes about an hour on two cores: every short workload on three
# legs; the data lane held or stuck at every one of its steps; and, as root, 1,000 rounds each of SIGKILL and of
# power cut under a real mount.  Shows progress, and ends each part with counts by operation, fault and checker.
# Exit code 0 only if nothing was found.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage='usage: tests/soak.sh --minutes N [--random-only]'
minutes=
all=1
while (($#)); do
    case $1 in
    --minutes) minutes=${2:?"$usage"} && shift 2 ;;
    --random-only) all= && shift ;;
    *) echo "soak: unknown word '$1'; $usage" >&2 && exit 2 ;;
    esac
done
[[ $minutes =~ ^[0-9]+$ ]] || { echo "soak: say how long; $usage" >&2 && exit 2; }

tools/setup.sh test
python=.venv/bin/python
jobs=$(nproc)
code=0

part() { # TITLE COMMAND…
    echo
    echo "== $1"
    shift
    "$@" </dev/null || code=1
}

part "random runs for $minutes minutes" "$python" -m mirrorfs.sim --minutes "$minutes" --jobs "$jobs"
if [[ $all ]]; then
    part 'every short workload on three legs' "$python" -m mirrorfs.sim --exhaustive --legs 3 --jobs "$jobs"
    export MIRRORFS_LANE_ALL=1
    part 'the data lane, held and stuck at every step' "$python" -m pytest tests/test_sim_lane.py
    if [[ $EUID == 0 && -w /dev/fuse ]]; then
        part 'a real mount: 1,000 rounds of SIGKILL' "$python" tests/killloop.py --rounds 1000
        part 'a real mount: 1,000 rounds of power cut' "$python" tests/killloop.py --power-cut --rounds 1000
    else
        echo 'soak: the rounds under a real mount need root and /dev/fuse; they are left out'
    fi
fi
echo
((code)) && echo 'soak: something was found; see above' || echo 'soak: nothing was found'
exit "$code"
