#!/usr/bin/env bash
# Sets up what is missing to run mirrorfs from this checkout, and says each step in one line.
#
#   tools/setup.sh [quickstart|test]
#
# As root it installs missing Debian packages.  Without root it checks that they are there and says what an
# admin has to install.  Then it makes the virtual environment .venv.  Quick when all is there.
# Exit codes: 0 done, 1 a step failed, 2 something is missing that only an admin can provide.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/mirrorfs.stamp
log=

# What building and running needs, what the tests need on top, and what they do without.
packages=(fuse3 libfuse3-dev pkg-config gcc python3-dev python3-venv util-linux e2fsprogs)
test_packages=(fio qemu-utils qemu-system-common qemu-system-x86 mdadm strace groff-base)
optional_packages=(shellcheck)

say() { printf 'setup: %s\n' "$*"; }

refuse() {
    printf 'setup: %s\n' "$@" >&2
    exit 2
}

# quietly COMMAND…: show what it says only if it fails.
quietly() {
    "$@" >"$log" 2>&1 </dev/null && return
    printf 'setup: this failed: %s\n' "$*" >&2
    tail -n 40 "$log" >&2
    return 1
}

# missing PACKAGE…: print those that are not installed, a line each.
missing() {
    local there
    # shellcheck disable=SC2016  # dpkg-query's variables, not the shell's
    there=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null) || true
    for package in "$@"; do
        grep -qx -- "$package installed" <<<"$there" || printf '%s\n' "$package"
    done
}

install_packages() {
    local lacking optional apt=(apt-get -qq -o DPkg::Lock::Timeout=120)
    mapfile -t lacking < <(missing "${packages[@]}")
    mapfile -t optional < <([[ $extras ]] && missing "${optional_packages[@]}")
    if ((${#lacking[@]} + ${#optional[@]} == 0)); then
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    say 'refreshing the package lists'
    quietly "${apt[@]}" update
    if ((${#lacking[@]})); then
        say "installing ${lacking[*]}"
        quietly "${apt[@]}" install -y --no-install-recommends "${lacking[@]}"
    fi
    if ((${#optional[@]})); then
        say "installing ${optional[*]} (optional)"
        quietly "${apt[@]}" install -y --no-install-recommends "${optional[@]}" || say "going on without ${optional[*]}"
    fi
}

check_packages() {
    local lacking=()
    command -v fusermount3 >/dev/null || lacking+=(fuse3)
    command -v cc >/dev/null || command -v gcc >/dev/null || lacking+=(gcc)
    if ! command -v pkg-config >/dev/null; then
        lacking+=(pkg-config libfuse3-dev)
    elif ! pkg-config --exists fuse3; then
        lacking+=(libfuse3-dev)
    fi
    if ((${#lacking[@]})); then
        refuse "an admin must install these first: ${lacking[*]}" \
            "on Debian, as root: apt-get install ${packages[*]}"
    fi
}

check_fuse() {
    if [[ ! -c /dev/fuse ]] && ((EUID == 0)); then
        modprobe fuse 2>/dev/null || true
    fi
    if [[ -c /dev/fuse && -r /dev/fuse && -w /dev/fuse ]]; then
        return
    fi
    local why='/dev/fuse must be accessible to you; it is usual that everybody may use it, as root: chmod 666 /dev/fuse'
    if [[ ! -c /dev/fuse ]]; then
        why='/dev/fuse is not there; as root: modprobe fuse (in a container: let it have the device)'
    fi
    if [[ $extras ]]; then
        say "$why (tests that mount will skip themselves)"
    else
        refuse "$why"
    fi
}

# Say which Python makes the environment: Debian's own if it is new enough.
find_python() {
    local candidate version old=
    for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if ((${version%%.*} > 3 || (${version%%.*} == 3 && ${version#*.} >= 11))); then
            command -v "$candidate"
            return
        fi
        old+=" $candidate is $version;"
    done
    refuse "Python 3.11 or newer is needed;${old:- there is no python3;} Debian 12 has it: apt-get install python3 python3-dev python3-venv"
}

# Whether .venv runs, is new enough, and was made here: it holds absolute paths, so a copied one is of no use.
venv_is_sound() {
    local line
    [[ -x $venv/bin/python3 && -f $venv/bin/pip ]] || return 1
    "$venv/bin/python3" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
    while IFS= read -r line; do
        [[ $line == *"$venv/bin/"* ]] && return
    done < <(head -n 2 "$venv/bin/pip")
    return 1
}

make_environment() {
    local python wanted have=
    wanted=$(cat "$root/setup.cfg" "$root/setup.py" | sha256sum)
    wanted=${wanted%% *}
    if venv_is_sound; then
        [[ ! -f $stamp ]] || read -r have <"$stamp" || true
        # An environment for the tests has all that is needed for running.
        if [[ $have == "$wanted test" || (-z $extras && $have == "$wanted "*) ]]; then
            return
        fi
    else
        python=$(find_python)
        say "making the virtual environment .venv with $python ($("$python" -V))"
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            refuse "$python cannot make virtual environments; on Debian, as root: apt-get install python3-venv"
        [[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] ||
            refuse "$python has no headers to compile with; on Debian, as root: apt-get install python3-dev"
        quietly "$python" -m venv --clear "$venv"
    fi
    say "installing mirrorfs and what it needs into .venv${extras:+, with what the tests need}"
    rm -f "$stamp"
    (cd "$root" && quietly "$venv/bin/python3" -m pip install --disable-pip-version-check -q -e ".${extras:+[$extras]}")
    printf '%s %s\n' "$wanted" "${extras:-run}" >"$stamp"
}

case ${1:-quickstart} in
quickstart) extras= ;;
test)
    extras='test'
    packages+=("${test_packages[@]}")
    ;;
*)
    echo "usage: $0 [quickstart|test]" >&2
    exit 1
    ;;
esac

log=$(mktemp)
trap 'rm -f "$log"' EXIT
exec 9<"$root" # two setups of one checkout take turns
flock 9
if ((EUID == 0)) && command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    install_packages
else
    check_packages
fi
check_fuse
make_environment
