# The two commands of the README, over meson.
#
#   make demo    installs what is missing, builds, answers real media
#   make check   all tests: gcc, clang, sanitizers
#   make         only the build;  make test: only the tests of that build

BUILD ?= build

all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

$(BUILD)/build.ninja: | packages
	meson setup $(BUILD)

packages:
	@tools/install-packages

demo: all
	tools/demo $(BUILD)

test: all
	meson test -C $(BUILD) --no-rebuild --print-errorlogs

check: packages
	tests/check-all

install: all
	meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf build build-clang build-sanitize demo

.PHONY: all packages demo test check install clean
