#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# build-image.sh [--name NAME] [--add FILE] [--kernel PACKAGE] [--force] - make the default guest image from Debian's
# own packages.
#
# Leaves NAME/{vmlinuz,initrd,disk.raw,image.json} in the image store, $VIVARIUM_HOME/images or else
# $XDG_DATA_HOME/vivarium/images.  Needs no root, no mount and no loop device: mmdebstrap works in a
# user namespace, mke2fs fills the file system from a directory, fakeroot keeps track of the owners.  What is
# inside is described by tools/image/: packages, overlay (files), configure (services), init (of the initrd).
# Built aside and moved into place at the end; done at once when the same inputs were built before.
# --add FILE: the packages named in FILE are in it as well, and its disk is 3 GiB.
# --kernel PACKAGE: in place of linux-image-cloud-amd64, say linux-image-amd64, Debian's kernel for hardware of all kinds.
#
# Environment: VIV_IMAGE_MIRROR  a Debian mirror, instead of those this host's apt uses
set -euo pipefail
umask 022

suite=bookworm
disk_size=1536M
free_min_mib=512
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
epoch=1735689600 # what every file of the image is dated at the most: the same inputs give the same image

say() { echo "image: $*"; }
fail()
{
	echo "image: $*" >&2
	exit 1
}

name=debian force= add= cloud=linux-image-cloud-amd64 kernel=
while [ $# -gt 0 ]; do
	case $1 in
	--name) [ $# -ge 2 ] || { echo "image: --name needs a name" >&2; exit 2; }; name=$2; shift ;;
	--add) [ $# -ge 2 ] || { echo "image: --add needs a file" >&2; exit 2; }; add=$2; shift ;;
	--kernel) [ $# -ge 2 ] || { echo "image: --kernel needs a package" >&2; exit 2; }; kernel=$2; shift ;;
	--force) force=1 ;;
	-h | --help) sed -n '3,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
	*) echo "image: unknown argument '$1'; there are --name NAME, --add FILE, --kernel PACKAGE and --force" >&2; exit 2 ;;
	esac
	shift
done
case $name in "" | -* | .* | */*) fail "'$name' is no name for an image" ;; esac

here=$(cd "$(dirname "$0")" && pwd)
parts=$here/image
[ -d "$parts" ] || fail "the description of the image is missing: $parts"
if [ -n "${VIVARIUM_HOME:-}" ]; then
	store=$VIVARIUM_HOME/images
else
	store=${XDG_DATA_HOME:-${HOME:?}/.local/share}/vivarium/images
fi
out=$store/$name

# ---- what goes in ----
[ -z "$add" ] || [ -r "$add" ] || fail "there is no $add, which should name more packages"
[ -z "$add" ] || disk_size=3G
case ${kernel:=$cloud} in linux-image-*) ;; *) fail "'$kernel' is no kernel: its name begins with linux-image-" ;; esac
[ "$kernel" = $cloud ] || disk_size=3G # its drivers alone are 400 MB
mapfile -t packages < <(sed 's/#.*//; s/[[:space:]]//g; /^$/d' "$parts/packages" ${add:+"$add"} |
	sed "s/^$cloud\$/$kernel/")

# The host's own Debian mirrors for this suite, as its apt knows them.
mirrors()
{
	local lines=
	if [ -n "${VIV_IMAGE_MIRROR:-}" ]; then
		echo "deb [signed-by=$keyring] $VIV_IMAGE_MIRROR $suite main"
		return
	fi
	if command -v apt-get >/dev/null; then
		lines=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)' \
			'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
			awk -v s="$suite" -v k="$keyring" '$3 == s || index($3, s "-") == 1 && $3 !~ /backports/ {
				if ($4 == "main") print "deb [signed-by=" k "] " $2, $3, $4 }' | sort -u)
	fi
	if ! grep -q " $suite main\$" <<<"$lines"; then
		fail "this host's apt knows no mirror of Debian $suite: run apt-get update, or name one with VIV_IMAGE_MIRROR=URL"
	fi
	echo "$lines"
}
sources=$(mirrors)

# A proxy, and dates that the host's apt was told not to check, hold for the guest's mirrors as well.
aptopts=()
if command -v apt-config >/dev/null; then
	for key in Acquire::http::Proxy Acquire::https::Proxy Acquire::Check-Valid-Until Acquire::Check-Date; do
		value=
		eval "$(apt-config shell value "$key")"
		[ -z "$value" ] || aptopts+=("--aptopt=$key \"$value\"")
	done
fi

inputs=$({
	cat "$0"
	(cd "$parts" && find . -type f -printf '%m %p\n' | LC_ALL=C sort && find . -type f -print0 |
		LC_ALL=C sort -z | xargs -0 cat)
	[ -z "$add" ] || cat "$add"
	echo "$sources" "${aptopts[@]}" "$kernel"
} | sha256sum | cut -d' ' -f1)

have_image()
{
	[ -s "$out/vmlinuz" ] && [ -s "$out/initrd" ] && [ -s "$out/disk.raw" ] &&
		grep -q "\"inputs\": \"$inputs\"" "$out/image.json" 2>/dev/null
}
if [ -z "$force" ] && have_image; then
	say "$out is there, and nothing it is made from has changed"
	exit 0
fi

# ---- what is needed ----
export PATH=$PATH:/usr/sbin:/sbin
for tool in mmdebstrap mke2fs dumpe2fs cpio tar awk; do
	command -v "$tool" >/dev/null || fail "'$tool' is missing: tools/deps.sh image installs what is needed"
done
[ -r "$keyring" ] || fail "$keyring is missing: install debian-archive-keyring"
export TMPDIR=${TMPDIR:-/var/tmp}
if [ "$(id -u)" = 0 ]; then
	mode=root as_root=
else
	mode=unshare as_root=fakeroot
	for tool in fakeroot newuidmap; do
		command -v "$tool" >/dev/null || fail "'$tool' is missing: tools/deps.sh image installs what is needed"
	done
	unshare --user true 2>/dev/null ||
		fail "this host gives no user namespaces to $(id -un): allow them (sysctl kernel.unprivileged_userns_clone=1), or make the image as root"
	grep -q "^$(id -un):\|^$(id -u):" /etc/subuid 2>/dev/null ||
		fail "$(id -un) has no line in /etc/subuid: run 'sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)', or make the image as root"
fi

mkdir -p "$store" 2>/dev/null || fail "$store can't be made: is its parent writable?"
exec 9>"$store/.$name.lock"
flock -n 9 || {
	say "waiting for another build of $name"
	flock 9
	[ -n "$force" ] || ! have_image || exit 0
}
for dir in "$store" "$TMPDIR"; do
	avail=$(df --output=avail -m "$dir" | tail -n 1)
	[ "$avail" -ge 2048 ] || fail "$dir has $avail MiB free, 2048 are needed: free some, or set VIVARIUM_HOME and TMPDIR"
done

rm -rf "$store/.$name".?????? # of builds that were killed; the lock says that none is running
work=$(mktemp -d "$store/.$name.XXXXXX")
leave()
{
	# between the two renames at the end the old image stands in $work
	[ ! -d "$work/old" ] || [ -e "$out" ] || mv -T "$work/old" "$out"
	rm -rf "$work"
}
trap leave EXIT
trap 'exit 130' INT TERM HUP
. "$parts/build"
