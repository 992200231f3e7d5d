#!/bin/sh
# Breaks the guards of the policy engine one by one, in a copy of the tree, and shows which test notices each; fails when
# one goes unnoticed. The guards are listed in test/mutate/list.go. For some of them: hack/mutate-policy.sh -only 'deny|port'
set -eu
cd "$(dirname "$0")/.."
exec "${GO:-go}" run -buildvcs=false ./test/mutate -go "${GO:-go}" "$@"
