# The commands of this project. CI runs `make ci`; nothing is checked there that cannot be checked here.

CARGO_TEST = cargo test --locked --features failpoints
TRIALS ?= 200
FUZZ_SECONDS ?= 60
FLOOD_SECONDS ?= 180
BENCH_SECONDS ?= 20

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build man demo test test-unit torture fuzz bench soak soak-short api-docs fmt fmt-check lint deny advisories ci release image-binary image-check sbom licences clean-dev

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the gateway for development
	cargo build --locked

man: ## Write the manual pages to target/man/man1, one for each command
	cargo run --locked --quiet -- man --dir target/man/man1

demo: ## Start a gateway, sign a quote, verify it with openssl, show its audit record
	scripts/setup demo
	cargo build --locked
	scripts/demo

test: ## Run all tests, doc tests included
	scripts/setup test
	$(CARGO_TEST)

test-unit: ## Run the unit tests alone; they need no packages
	$(CARGO_TEST) --lib

torture: ## Run the integration tests with many trials each (TRIALS=200, FLOOD_SECONDS=180), then the fuzz targets
	scripts/setup test
	TRIALS=$(TRIALS) FLOOD_SECONDS=$(FLOOD_SECONDS) $(CARGO_TEST) --no-fail-fast --test it --test kms --test signers
	@# All orders of the model are many: optimised.
	TRIALS=$(TRIALS) $(CARGO_TEST) --release --test ledger
	scripts/fuzz $(FUZZ_SECONDS)

fuzz: ## Run each fuzz target for a time (FUZZ_SECONDS=60)
	scripts/fuzz $(FUZZ_SECONDS)

bench: ## Measure whole gateways of a release build against the targets (BENCH_SECONDS=20); prints Markdown
	scripts/bench $(BENCH_SECONDS)

# Of a release build, without failpoints. What it tells goes to target/soak/<seconds>/.
SOAK = SOAK_OUT=target/soak/$(1) SOAK_SECONDS=$(1) cargo test --locked --release --test it -- --exact --nocapture \
	soak::nothing_is_lost_and_nothing_is_twice_while_everything_is_exchanged

soak: ## Load two gateways for an hour while everything is exchanged and fails; nothing may be lost or come twice
	scripts/setup test
	$(call SOAK,3600)

soak-short: ## The same in ten minutes
	scripts/setup test
	$(call SOAK,600)

api-docs: ## Make docs/api.md from the comments of proto/; a test holds that it is up to date
	UPDATE=1 $(CARGO_TEST) --test it api::the_reference_is_what_the_proto_says

fmt: ## Format the code
	cargo fmt

fmt-check:
	cargo fmt --check
	cargo fmt --check --manifest-path tools/policy-prove/Cargo.toml

lint: fmt-check ## Check the format, and run clippy with every warning an error
	cargo clippy --locked --all-targets --features failpoints -- -D warnings
	@# These have lock files of their own, which go stale in silence.
	cargo metadata --locked --format-version 1 --manifest-path tools/policy-prove/Cargo.toml >/dev/null
	cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null

deny: ## Check the dependencies' licences, names and sources against deny.toml
	scripts/cargo-deny --locked check licenses bans sources
	scripts/cargo-deny --locked --manifest-path tools/policy-prove/Cargo.toml --config deny.toml check licenses bans sources

advisories: ## Check the dependencies for known vulnerabilities; needs the network
	scripts/cargo-deny --locked check advisories

ci: lint deny test ## Everything that must pass before a change goes in

release: ## Build the gateway for production
	cargo build --locked --release

image-binary: ## Build it so that no path of this machine is in it, for the image
	scripts/image-binary

image-check: ## Run the release build in the root file system that the image has
	scripts/image-check target/release/quotesign

sbom: ## List what the gateway is built of as CycloneDX: target/sbom.cdx.json
	scripts/sbom

licences: ## Gather the licences of what it is built of: target/licences.html
	mkdir -p target
	cargo fetch --locked
	scripts/cargo-tool about generate --locked --offline --fail --output-file target/licences.html scripts/licences.hbs

clean-dev: ## Remove the development environment: its keys, ledger and certificates
	rm -rf .dev
