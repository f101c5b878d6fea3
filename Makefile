# SPDX-License-Identifier: Apache-2.0
# The front door.  The build itself is meson's: see meson.build.
BUILD ?= build
PREFIX ?= /usr/local

.PHONY: help run build image test bench install format check-format check-layers clean

help:
	@echo 'make run            install what is missing, build, make the Debian image, boot it here'
	@echo 'make build          leave the program at $(BUILD)/viv'
	@echo 'make image          make the default guest image, if it is not there yet'
	@echo 'make test           install what is missing and run every test'
	@echo 'make bench          the same programs natively, in viv and in QEMU (BENCH="--quick": less of it)'
	@echo 'make install        into $(PREFIX) (PREFIX=...; DESTDIR=... is respected)'
	@echo 'make format         put the C sources into the form of .clang-format'
	@echo 'make check-format   say which files are not in that form'
	@echo 'make clean          remove $(BUILD) and the directories of the tests'

run: build image
	@$(BUILD)/viv run debian

# A compiler newer than those of the tests may know new warnings: they are errors in `make test` only.
build:
	@tools/deps.sh build
	@[ -f $(BUILD)/build.ninja ] || meson setup $(BUILD) --prefix=$(PREFIX) -Dwerror=false
	@ninja -C $(BUILD) viv

image:
	@tools/deps.sh image
	@tools/build-image.sh

test:
	@tools/deps.sh test
	@tools/run-tests

bench: build
	@tools/deps.sh bench
	@tools/build-image.sh --name bench --add bench/packages
	@tools/build-image.sh --name full --kernel linux-image-amd64
	@bench/bench.py --viv $(BUILD)/viv --out $(BUILD)/bench $(BENCH)

install: build
	@meson configure $(BUILD) --prefix=$(PREFIX)
	@ninja -C $(BUILD) viv pages
	@meson install -C $(BUILD) --no-rebuild

format:
	@tools/deps.sh format
	@git ls-files '*.c' '*.h' | xargs clang-format -i

check-format:
	@tools/deps.sh format
	@git ls-files '*.c' '*.h' | xargs clang-format --dry-run -Werror

check-layers:
	@tools/check-layers

clean:
	rm -rf $(BUILD) build-*
