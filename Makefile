# The two commands of the README, over meson.
#
#   make demo    installs what is missing, builds, answers real media
#   make check   all tests: gcc, clang, sanitizers
#   make         only the build;  make test: only the tests of that build
#   make nano    trains the built-in model anew: hours, needs Python (docs/nano.md)

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

NANO ?= nano-work

nano: all
	@tools/install-packages nano
	test -d $(NANO)/venv || python3 -m venv $(NANO)/venv
	$(NANO)/venv/bin/pip install -q -r tools/nano/requirements.txt
	$(NANO)/venv/bin/python tools/nano/nano.py $(NANO) \
	  --qomni $(BUILD)/tools/qomni

install: all
	meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf build build-clang build-sanitize demo

.PHONY: all packages demo test check nano install clean
