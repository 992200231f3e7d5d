#!/bin/sh
# Regenerates the Go of api/**/*.proto with the plugin versions that tools/go.mod pins.
set -eu
cd "$(dirname "$0")/.."
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -modfile=tools/go.mod -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH="$bin:$PATH" protoc -I api --go_out=api --go_opt=module=porin/api --go-grpc_out=api --go-grpc_opt=module=porin/api \
	flow/flow.proto agent/v1/agent.proto
