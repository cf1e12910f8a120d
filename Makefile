# The commands of a user. Each does the set-up that it needs, and is quick the second time. Developers: CMakePresets.json.
EXAMPLE ?= digits

.PHONY: all setup build train test clean

all: setup

setup:
	@scripts/setup.sh

build: setup

train: setup
	@.venv/bin/python -m terra examples/$(EXAMPLE).py $(ARGS)

test:
	@scripts/setup.sh test
	@scripts/test.sh $(SUITES)

clean:
	rm -rf build .venv
