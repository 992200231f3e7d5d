# porin: everything a newcomer or CI runs. `make help` lists the targets.
# sudo may drop the PATH that has go: fall back to where the Go distribution installs itself.
GO ?= $(shell command -v go 2>/dev/null || echo /usr/local/go/bin/go)
VERSION ?= $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
CLANG ?= clang-19
STRIP ?= llvm-strip-19
FORMAT ?= clang-format-19
BINARIES := porin porin-agent porin-cni porin-operator
LDFLAGS := -s -w -X porin/internal/agent.Version=$(VERSION) -X porin/internal/cli.Version=$(VERSION) -X porin/internal/cni.Version=$(VERSION) -X porin/internal/operator.Version=$(VERSION)
GOBUILD := CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)'
TOOL := $(GO) tool -modfile=tools/go.mod
# The race detector needs cgo and slows the kernel scenes: `make test RACE=-race` asks for it.
RACE ?=
FUZZTIME ?= 20s
# Comma-separated series for `make test-kernels`; all that test/kernels knows when empty.
KERNELS ?=

.DEFAULT_GOAL := help
.PHONY: help build generate demo test test-unit test-kernels bench mutate fuzz lint fmt check clean need-root need-go

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

need-go:
	@$(GO) version >/dev/null 2>&1 || { echo "go is not installed or not in PATH: install Go 1.26 or newer, or run 'make GO=/path/to/go ...'" >&2; exit 1; }

need-root:
	@[ "$$(id -u)" = 0 ] || { echo "needs root: run with sudo" >&2; exit 1; }

build: need-go ## build the binaries into bin/
	@mkdir -p bin
	@for b in $(BINARIES); do echo "build bin/$$b"; $(GOBUILD) -o bin/$$b ./cmd/$$b || exit 1; done

generate: need-go ## regenerate the BPF objects and the protobuf code (needs clang-19, llvm-19, libbpf-dev, protoc)
	@command -v $(CLANG) >/dev/null || { echo "$(CLANG) is not installed: apt-get install clang-19 llvm-19 libbpf-dev" >&2; exit 1; }
	@command -v protoc >/dev/null || { echo "protoc is not installed: apt-get install protobuf-compiler" >&2; exit 1; }
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(STRIP) $(GO) generate ./bpf/...
	./hack/generate-proto.sh

demo: need-root build ## the main job, on this machine: real pods, real policy, who may talk to whom and why (root)
	bin/porin lab run examples/starwars/lab.yaml

test: need-root build ## everything: unit, packets through the kernel, scenes in namespaces (root)
	$(GO) test -count=1 $(RACE) -timeout 40m ./...

test-unit: need-go ## what needs no root, under a minute
	PORIN_UNIT=1 $(GO) test -count=1 ./...

test-kernels: need-go build ## the oldest and the newest kernel of Debian 12 in QEMU: verifier, packets, labs (downloads 60 MB once)
	$(GO) run -buildvcs=false ./test/kernels -kernels '$(KERNELS)'

bench: need-root build ## measure against floors and peers; table and bench/latest.json (root)
	@mkdir -p bench
	$(GO) run -buildvcs=false ./test/bench -go $(GO)

mutate: need-go ## break the guards of the policy engine one by one: which test notices (minutes)
	GO=$(GO) ./hack/mutate-policy.sh

fuzz: need-go ## run every fuzz target for FUZZTIME each
	@for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "fuzz $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

lint: need-go ## formatting, vet, staticcheck, modern Go, C formatting
	@bad=$$($(TOOL) gofumpt -l $$(git -c safe.directory='*' ls-files '*.go' | grep -v '\.pb\.go$$' | grep -v '_bpfel\.go$$')); \
		[ -z "$$bad" ] || { echo "not formatted, run 'make fmt':"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	@out=$$($(GO) fix -diff ./... 2>&1) || { echo "older Go idioms, run 'go fix ./...':"; echo "$$out"; exit 1; }
	@if command -v $(FORMAT) >/dev/null; then $(FORMAT) --dry-run --Werror bpf/*.c bpf/include/*.h; \
		else echo "$(FORMAT) is not installed (apt-get install clang-format-19): C formatting not checked" >&2; [ -z "$$CI" ]; fi

fmt: need-go ## format Go and C
	$(TOOL) gofumpt -w $$(git -c safe.directory='*' ls-files '*.go' | grep -v '\.pb\.go$$' | grep -v '_bpfel\.go$$')
	@if command -v $(FORMAT) >/dev/null; then $(FORMAT) -i bpf/*.c bpf/include/*.h; fi

check: lint test ## what CI runs after regenerating

clean: ## remove what make made
	rm -rf bin
