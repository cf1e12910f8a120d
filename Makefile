# The commands of a user. Each does the set-up that it needs, and is quick the second time. Developers: CMakePresets.json.
EXAMPLE ?= digits

.PHONY: all setup build train test compare clean

all: setup

setup:
	@scripts/setup.sh

build: setup

train: setup
	@.venv/bin/python -m terra examples/$(EXAMPLE).py $(ARGS)

test:
	@scripts/setup.sh test
	@scripts/test.sh $(SUITES)

compare:
	@scripts/setup.sh test
	@.venv/bin/python perf/compare.py --install --out perf/out/report $(ARGS)

clean:
	rm -rf build .venv .venv-perf
