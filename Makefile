# Two commands do everything on a fresh Debian 12 with Rust: `make demo` runs the main job, `make test` every test.

SHELL := /bin/bash
export ARDENT_COMPUTE_LIB_DIR ?= $(CURDIR)/target/compute-lib

.PHONY: help setup setup-s3 setup-majors extension build package up demo test test-full verify-redo bench lint clean

help: ## What can be made.
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install the system packages that are missing.
	@scripts/setup.sh

setup-s3: setup ## Fetch the S3 server that the tests run against.
	@scripts/setup-s3.sh

setup-majors: setup ## Fetch the server and the headers of another major that tests need.
	@scripts/setup-majors.sh

extension: setup ## Build the library that computes load, for each major whose server headers are there.
	@compute-hooks/extension/build.sh "$(ARDENT_COMPUTE_LIB_DIR)"

build: extension ## Build the ardent program.
	@cargo build --bin ardent

package: extension ## Make the packages of this platform (npm, Debian), into target/packages.
	@packages/build.sh

up: build ## Run Ardent for your own database, until Ctrl-C.
	@scripts/up.sh

demo: build ## Walk the whole job on a sample production server, and clean up.
	@scripts/demo.sh

test: setup-s3 setup-majors extension ## Run every test.
	@scripts/test.sh

test-full: setup-s3 setup-majors extension ## Run the long tests of one area: make test-full AREA=redo|majors|storage|quorum|chaos|diff|e2e|mcp|packages|drivers
	@scripts/test-full.sh "$(AREA)"

verify-redo: build ## Prove redo against Postgres's own regression suite.
	@scripts/verify-redo.sh

bench: extension setup-s3 ## Run the benchmarks beside their peers.
	@scripts/bench.sh

lint: ## Formatting and lints.
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings

clean: ## Remove what was built.
	@cargo clean
	@rm -rf target/compute-lib
