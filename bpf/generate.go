package bpf

// Both architectures' header folders: one object serves amd64 and arm64, and the headers used are the same in both.
//
//go:generate env BPF2GO_CC=clang-19 BPF2GO_STRIP=llvm-strip-19 go tool -modfile=../tools/go.mod bpf2go -target bpfel -no-global-types Pod pod.bpf.c -- -O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function -Iinclude -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate env BPF2GO_CC=clang-19 BPF2GO_STRIP=llvm-strip-19 go tool -modfile=../tools/go.mod bpf2go -target bpfel -no-global-types Host host.bpf.c -- -O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function -Iinclude -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
