#!/usr/bin/env bash
# Sets up and runs all checks: ruff, mypy, shellcheck, then pytest on tests/.
#
#   tests/run.sh                  everything
#   tests/run.sh -k crash …       pytest alone, with these arguments
#
# Exit code 0 only if all is well.  What needs root or a device that is not there skips itself.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh test
bin=$PWD/.venv/bin
export PATH=$bin:$PATH
code=0

check() { # NAME COMMAND…
    local name=$1
    shift
    if "$@"; then
        echo "check: $name is content"
    else
        echo "check: $name is NOT content"
        code=1
    fi
}

if (($# == 0)); then
    check ruff "$bin/ruff" check -q .
    check mypy "$bin/mypy" --no-error-summary
    if command -v shellcheck >/dev/null; then
        mapfile -t scripts < <(grep -lE -m 1 '^#!.*\b(ba|da)?sh$' -r --exclude-dir='.?*' . && grep -lE '^#!.*sh$' .ci/*)
        check "shellcheck (${#scripts[@]} scripts)" shellcheck "${scripts[@]}"
    else
        echo 'check: shellcheck is not installed; its check is skipped'
    fi
fi
if ((EUID)); then
    echo 'tests: not root, so tests marked "loop" (loop devices, ext4) skip themselves'
fi
if [[ ! -r /dev/fuse || ! -w /dev/fuse ]]; then
    echo 'tests: /dev/fuse is not accessible, so tests marked "mount" skip themselves'
fi
if (($#)); then
    "$bin/python3" -m pytest "$@" </dev/null || code=$?
    exit "$code"
fi

# Two at once: what simulates keeps the processors busy, what is on real mounts mostly waits for disks.
simulated=(tests/test_{crash,plants,regressions,sabotage,sim,sim_lane}.py)
said=$(mktemp)
"$bin/python3" -m pytest "${simulated[@]}" </dev/null >"$said" 2>&1 &
simulating=$!
trap 'kill "$simulating" 2>/dev/null || true; rm -f "$said"' EXIT
"$bin/python3" -m pytest "${simulated[@]/#/--ignore=}" </dev/null || code=$?
wait "$simulating" || code=$?
# Last, so that summaries end the output.
echo
echo 'tests: the simulator said'
cat "$said"
exit "$code"
