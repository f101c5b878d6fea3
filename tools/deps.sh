#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# deps.sh GROUP... - install through apt what is missing for a group: build, image, test, format, bench.
# Nothing is downloaded, and no password asked for, when nothing is missing.
set -eu

# Every build directory has the unit tests in it, hence cmocka and Zydis.
# (libslirp's pkg-config file asks for GLib's, its package does not.)
build="build-essential meson ninja-build pkg-config libjansson-dev libslirp-dev libglib2.0-dev libcmocka-dev libzydis-dev libxxhash-dev"
build="$build zlib1g-dev libzstd-dev nettle-dev libcrypt-dev" # compressed clusters; files of translated code; passwords
build="$build libgnutls28-dev" # links of migrations
build="$build liburing-dev"	       # disks; not required
build="$build libyaml-dev libpcap-dev libseccomp-dev" # lab files, filters of captures, confinement
# The image is put together by mmdebstrap in a user namespace (uidmap, fakeroot), or directly by root.  SeaBIOS
# starts machines that are given no kernel.
image="mmdebstrap e2fsprogs cpio debian-archive-keyring seabios"
[ "$(id -u)" = 0 ] || image="$image uidmap fakeroot"
# Firmware and boot loaders that the end-to-end tests start.
boot="ovmf grub-common grub-pc-bin grub-efi-amd64-bin mtools memtest86+ u-boot-qemu"
test="$build $image $boot clang clang-format libclang-rt-dev python3 python3-pytest python3-pexpect"
test="$test python3-pytest-xdist" # as many files of tests at a time as there are CPUs
test="$test qemu-utils" # the other opinion on qcow2
test="$test bash zsh fish man-db groff mandoc" # completion in real shells; readers of the manual pages
test="$test openssl" # gives certificates, and speaks TLS 1.2
test="$test systemd" # reads the units of viv service
test="$test python3-yaml openssh-client" # reads what cloud-init is told; keys, logins
test="$test python3-jsonschema" # checks every message of the control protocol
test="$test python3-prometheus-client" # another reader of viv metrics
format="clang-format"
bench="$build $image python3 qemu-system-x86 iperf3"

fail()
{
	echo "deps: $*" >&2
	exit 1
}

[ $# -gt 0 ] || fail "name a group: build, image, test, format or bench"
want=
for group; do
	case $group in
	build) want="$want $build" ;;
	image) want="$want $image" ;;
	test) want="$want $test" ;;
	format) want="$want $format" ;;
	bench) want="$want $bench" ;;
	*) fail "no group '$group'; there are build, image, test, format and bench" ;;
	esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	echo "deps: this is no Debian system, so nothing is installed; needed are what Debian calls:$want" >&2
	exit 0
fi

# shellcheck disable=SC2086 # the list is split on purpose
have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n${db:Status-Status} ${Provides}\n' $want 2>/dev/null || true)
missing=
for p in $want; do
	case " $missing " in *" $p "*) continue ;; esac
	printf '%s\n' "$have" | grep -Eq "^installed (.*[ ,])?$p([ ,(].*)?$" || missing="$missing $p"
done

# The image comes from the mirrors that apt knows; it knows none before its first update.
need_lists=
case " $* " in
*" image "* | *" test "* | *" bench "*)
	[ -n "$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null)" ] || need_lists=1
	;;
esac
[ -n "$missing$need_lists" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null ||
		fail "there is no sudo here; as root run: apt-get update && apt-get install$missing"
	sudo=sudo
fi

log=$(mktemp "${TMPDIR:-/tmp}/viv-deps.XXXXXX")
step()
{
	what=$1
	shift
	echo "deps: $what"
	if ! $sudo env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@" </dev/null >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		fail "$what: failed; the whole log is $log"
	fi
}

# With sudo the password is asked for here, on the terminal, not inside a step whose input is closed.
[ -z "$sudo" ] || sudo -v || fail "sudo refused; as root run: apt-get update && apt-get install$missing"
step "reading the package lists" apt-get -q -o DPkg::Lock::Timeout=600 update
[ -n "$missing" ] || { rm -f "$log"; exit 0; }
# shellcheck disable=SC2086
step "installing$missing" apt-get -q -y -o DPkg::Lock::Timeout=600 install --no-install-recommends $missing
rm -f "$log"
