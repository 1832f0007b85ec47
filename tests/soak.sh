#!/usr/bin/env bash
# Searches for lost writes for as long as it is told, on all cores, with seeds never used before.
#
#   tests/soak.sh --minutes N
#
# First every short workload on three legs, and the data lane held or stuck at each of its steps; then random
# runs until N minutes are over; then, as root, 1,000 rounds each of SIGKILL and of power cut under a real
# mount, unless --simulation-only.
# Ends with counts by operation, fault and checker.  Exit code 0 only if nothing was found.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
minutes=
real=1
while (($#)); do
    case $1 in
    --minutes) minutes=${2:?--minutes needs a number} && shift 2 ;;
    --simulation-only) real= && shift ;;
    *) echo "soak: unknown word '$1'; usage: tests/soak.sh --minutes N [--simulation-only]" >&2 && exit 2 ;;
    esac
done
[[ $minutes =~ ^[0-9]+$ ]] || { echo 'soak: say how long: tests/soak.sh --minutes N' >&2 && exit 2; }

tools/setup.sh test
python=.venv/bin/python
jobs=$(nproc)
code=0
began=$SECONDS
echo '== every short workload on three legs'
"$python" -m mirrorfs.sim --exhaustive --legs 3 --jobs "$jobs" || code=1
echo '== the data lane, held and stuck at every step of every script'
MIRRORFS_LANE_ALL=1 "$python" -m pytest tests/test_sim_lane.py </dev/null || code=1
left=$((minutes - (SECONDS - began) / 60))
if ((left > 0)); then
    echo "== random runs for the $left minutes left"
    "$python" -m mirrorfs.sim --minutes "$left" --jobs "$jobs" || code=1
fi
if [[ $real && $EUID == 0 && -w /dev/fuse ]]; then
    for kind in '' --power-cut; do
        echo "== a real mount: 1,000 rounds of ${kind:-SIGKILL}"
        # shellcheck disable=SC2086
        "$python" tests/killloop.py $kind --rounds 1000 || code=1
    done
fi
exit "$code"
