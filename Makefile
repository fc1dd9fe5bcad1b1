# fedgate: `make` alone lists what there is. The work is done by cargo and by the scripts in scripts/.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help build demo test matrix e2e bench bench-quick soak regress fuzz fuzz-targets lint setup deny compose clean

help: ## this list
	@echo 'fedgate, a read-only PostgreSQL gateway. Needs Rust; the rest is fetched when it is missing.'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  make demo KEEP=1      leaves database and gateway up until Ctrl-C, for your own psql, JDBC or Trino'
	@echo '  FEDGATE_CACHE=FOLDER  where fetched parts are kept (default: ~/.cache/fedgate)'
	@echo '  FEDGATE_PG_BIN=FOLDER the PostgreSQL server programs to use (default: looked for)'

build: ## the gateway, optimised: target/release/fedgate
	cargo build --release --bin fedgate

demo: ## a private PostgreSQL, the gateway before it, and a walk through both (about a minute after building)
	@scripts/demo

test: ## everything but Trino: format, lints, unit and integration tests with real servers and clients
	@scripts/test

matrix: ## what depends on PostgreSQL's version, on 14 and 18 (VERSIONS='16 17' for others)
	@scripts/matrix $(VERSIONS)

e2e: ## Trino 476 reading, failing to write, and masking what the catalog tags, with OPA and the gateway (5 min)
	@scripts/e2e

bench: ## the gateway beside direct, socat, HAProxy and PgBouncer, about an hour; WRITE=1: into docs/performance.md
	@scripts/bench-suite $(if $(WRITE),--write)

bench-quick: ## a cut of it in under five minutes
	@scripts/bench-suite --quick

soak: ## mixed load with faults, every answer checked: SECONDS=3600, POOL='pool = { … }'
	@scripts/soak --seconds $(or $(SECONDS),3600) $(if $(POOL),--pool '$(POOL)')

regress: ## the guard over PostgreSQL's own regression suite: PG_REGRESS_DIR=…/src/test/regress
	@scripts/regress

fuzz: ## the guard against PostgreSQL's own parser, until Ctrl-C or for FUZZ_SECONDS; FUZZ=effects: against a server
	@if [ "$(FUZZ)" = effects ]; then scripts/fuzz-effects $${FUZZ_SECONDS:-86400}; else scripts/regress fuzz; fi

fuzz-targets: ## libFuzzer on frames, startup, guard, comments (needs nightly): SECONDS_EACH=60
	@scripts/fuzz-targets $(or $(SECONDS_EACH),60)

lint: ## format, clippy and shell syntax
	@scripts/lint

setup: ## get what the tests need, without running them
	@scripts/setup

deny: ## licences and sources of all dependencies (cargo-deny, built once into the cache)
	@scripts/deny

compose: ## check docker-compose.yml
	@scripts/check-compose

clean: ## remove build results; the cache of fetched parts stays
	cargo clean
