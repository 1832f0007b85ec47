#!/usr/bin/env bash
# Makes what a small guest boots from: Debian's kernel, and an initramfs around Debian's static busybox.
#
#   examples/vm/initramfs.sh [--module NAME]… [--program PATH]… INIT FOLDER
#
# Makes FOLDER/vmlinuz and FOLDER/initrd.  INIT is the script that the guest runs as its first process; busybox'
# applets are in its PATH, after `/bin/busybox --install -s /bin`.  Each module, with all that it needs, can be
# loaded by modprobe, and is listed in /etc/modules.  Each program of this machine is taken along with its shared
# libraries, at the same path; by that it is to be called, as busybox' shell prefers applets of the same name.
#
# The two packages are fetched once, by `apt-get download`, and kept unpacked in $XDG_CACHE_HOME/mirrorfs/guest
# (~/.cache/mirrorfs/guest); remove that for newer ones.  Needs no root.  Exit codes: 0 made, 1 failed, 2 usage.
set -euo pipefail
export LC_ALL=C

KERNEL=linux-image-cloud-amd64 # the one with drivers for virtual machines only: 27 MB instead of 71
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/mirrorfs/guest

usage() {
    sed -n '/^set /q; 2,$ s/^# \{0,1\}//p' "$0"
    exit "$1"
}

die() {
    printf 'initramfs: %s\n' "$*" >&2
    exit 1
}

# quietly COMMAND…: show what it says only if it fails.
quietly() {
    local said
    said=$("$@" 2>&1) || die "this failed: $*"$'\n'"$said"
}

# fetch: fill the cache, whole or not at all.
fetch() {
    local new=$cache.$$
    mkdir -p "$new"
    # shellcheck disable=SC2064  # now
    trap "rm -rf '$new'" EXIT
    if ! (download "$new") 2>/dev/null; then
        ((EUID)) || quietly apt-get -q update # its lists may be missing, or old
        (download "$new")
    fi
    for package in "$new"/*.deb; do
        quietly dpkg-deb -x "$package" "$new"
    done
    mv "$new"/boot/vmlinuz-* "$new/vmlinuz"
    rm -rf "${new:?}"/{*.deb,boot,usr}
    quietly "$new/bin/busybox" depmod -b "$new" "$(ls "$new/lib/modules")"
    rm -rf "$cache"
    mv "$new" "$cache"
    trap - EXIT
}

# download FOLDER: get the packages; changes directory.
download() {
    local real
    real=$(apt-cache depends "$KERNEL" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [[ $real ]] || die "apt knows no package $KERNEL; as root: apt-get update"
    cd "$1"
    quietly apt-get -q -o APT::Sandbox::User= download "$real" busybox-static
}

# add_module NAME: the module and what it needs; one that is built into the kernel is there already.
add_module() {
    local name=${1//_/[_-]} file
    ! grep -qE "/$name\.ko" "$modules/modules.builtin" || return 0
    file=$(grep -oE "^[^:]*/$name\.ko[^:]*" "$modules/modules.dep") || die "the kernel has no module $1"
    add_module_file "$file"
    echo "$1" >>"$root/etc/modules"
}

add_module_file() {
    local needed file
    [[ ! -e $root/lib/modules/$version/$1 ]] || return 0
    install -D -m 644 "$modules/$1" "$root/lib/modules/$version/$1"
    read -r -a needed < <(sed -n "s|^$1:||p" "$modules/modules.dep")
    for file in "${needed[@]}"; do add_module_file "$file"; done
}

# add_program PATH: a program and the shared libraries that the dynamic linker would load for it.
add_program() {
    local file
    [[ -x $1 ]] || die "there is no program $1 here"
    for file in "$1" $(ldd "$1" | grep -oE '/[^ ]+' || true); do
        install -D "$(realpath "$file")" "$root$file"
    done
}

wanted_modules=(virtio_pci virtio_blk ext4) programs=()
while [[ ${1-} == -* ]]; do
    case $1 in
    --module) wanted_modules+=("${2-}") ;;
    --program) programs+=("${2-}") ;;
    -h | --help) usage 0 ;;
    *) usage 2 >&2 ;;
    esac
    shift 2 || usage 2 >&2
done
(($# == 2)) || usage 2 >&2
[[ $(dpkg --print-architecture) == amd64 ]] || die 'the guest is for amd64'

mkdir -p "$(dirname "$cache")"
exec 9>"$cache.lock" # who comes second finds it filled
flock 9
[[ -d $cache ]] || fetch
flock -u 9

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
version=$(ls "$cache/lib/modules")
modules=$cache/lib/modules/$version
install -D "$cache/bin/busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install -D "$1" "$root/init"
mkdir -p "$root"/{dev,etc,mnt,proc,sys,tmp} "$root/lib/modules/$version"
cp "$modules/modules.dep" "$root/lib/modules/$version/"
: >"$root/etc/modules"
for name in "${wanted_modules[@]}"; do add_module "$name"; done
for name in "${programs[@]}"; do add_program "$name"; done
mkdir -p "$2"
install -m 644 "$cache/vmlinuz" "$2/vmlinuz"
(cd "$root" && find . | "$cache/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$2/initrd"
