#!/usr/bin/env bash
# Makes mirrorfs of this checkout known to the whole machine: to every PATH, to mount(8), and to systemd.
#
#   tools/install.sh              install; again after the checkout has moved
#   tools/install.sh uninstall    take all of that away again
#
# Needs root, and the environment that tools/setup.sh makes.  All but the unit are links into the checkout, so
# that it is updated with it.  What is not ours is never replaced.  With DESTDIR everything goes below that
# directory.  Exit codes: 0 done, 1 usage or a step failed, 2 something is in the way or missing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bin=$root/.venv/bin
destination=${DESTDIR:-}
unit=/etc/systemd/system/mirrorfs@.service

# Where each link is, and the program that it leads to.
declare -A links=(
    [/usr/local/bin/mirrorfs]=mirrorfs
    [/sbin/mount.mirrorfs]=mount.mirrorfs
    [/sbin/mount.fuse.mirrorfs]=mount.mirrorfs
    [/sbin/umount.fuse.mirrorfs]=umount.mirrorfs
)

refuse() {
    printf 'install: %s\n' "$@" >&2
    exit 2
}

# Whether a path is free, or has a link to a program of mirrorfs, from whatever checkout.
is_ours() { # PATH PROGRAM
    [[ ! -e $1 && ! -L $1 ]] || [[ -L $1 && $(readlink "$1") == */.venv/bin/$2 ]]
}

reload_systemd() {
    if [[ ! $destination && -d /run/systemd/system ]]; then
        systemctl daemon-reload
    fi
}

install_all() {
    local path
    for path in "${!links[@]}"; do
        [[ -x $bin/${links[$path]} ]] || refuse "$bin/${links[$path]} is not there; run tools/setup.sh first"
        is_ours "$destination$path" "${links[$path]}" || refuse "$destination$path is something else; it stays"
    done
    for path in "${!links[@]}"; do
        mkdir -p "$(dirname "$destination$path")"
        ln -sfn "$bin/${links[$path]}" "$destination$path"
        printf 'install: %s\n' "$destination$path"
    done
    mkdir -p "$destination/etc/mirrorfs" "$(dirname "$destination$unit")"
    install -m 644 "$root/examples/systemd/mirrorfs@.service" "$destination$unit"
    printf 'install: %s, for pools named in %s\n' "$destination$unit" "$destination/etc/mirrorfs/NAME.conf"
    reload_systemd
}

uninstall_all() {
    local path
    for path in "${!links[@]}"; do
        if [[ -L $destination$path ]] && is_ours "$destination$path" "${links[$path]}"; then
            rm "$destination$path"
        fi
    done
    rm -f "$destination$unit"
    rmdir "$destination/etc/mirrorfs" 2>/dev/null || true # what an admin wrote there stays
    reload_systemd
}

case ${1:-install} in
install | uninstall)
    [[ $destination ]] || ((EUID == 0)) || refuse 'only root may do that'
    "${1:-install}_all"
    ;;
*)
    echo "usage: $0 [install|uninstall]" >&2
    exit 1
    ;;
esac
