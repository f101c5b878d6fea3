#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# build.sh BITS OUTPUT DEPFILE SOURCES...: one multiboot image of a test guest.
set -e
bits=$1 out=$2 dep=$3
shift 3
here=$(dirname "$0")
cc="gcc -m$bits -std=gnu17 -O2 -g -ffreestanding -fno-stack-protector -fno-strict-aliasing -fcf-protection=none
	-fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -mgeneral-regs-only
	-Wall -Wextra -Werror -Wno-unused-parameter -Wno-array-bounds
	-fno-delete-null-pointer-checks -I$here/lib"
link="-nostdlib -static -no-pie -Wl,-T,$here/lib/link.ld -Wl,--build-id=none -Wl,-z,max-page-size=4096
	-Wl,-z,noexecstack -Wl,--no-warn-rwx-segments"
if [ "$bits" = 64 ]; then
	cc="$cc -fPIE -mno-red-zone"
else
	cc="$cc -fno-pic"
fi
objects=
: >"$dep"
for s in "$here/lib/start$bits.S" "$here/lib/guest.c" "$@"; do
	o=$out.$(basename "$s").o
	$cc -MMD -MT "$(basename "$out")" -MF "$o.d" -c "$s" -o "$o"
	cat "$o.d" >>"$dep"
	rm "$o.d"
	objects="$objects $o"
done
# shellcheck disable=SC2086
$cc $link -o "$out.tmp" $objects
# Multiboot loaders want a 32-bit ELF file, also around 64-bit code.
objcopy -O elf32-i386 "$out.tmp" "$out"
mv "$out.tmp" "$out.debug"
# shellcheck disable=SC2086
rm $objects
