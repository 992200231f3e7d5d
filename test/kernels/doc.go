// Command kernels proves the claim "Linux >= 6.1": it boots Debian's kernels in QEMU and runs porin's own tests and
// examples on them. It reads the packages of Debian 12, the tests of bpf/ and internal/datapath, the binaries of
// `make build` and the examples; it writes bin/kernels/, a cache that `make clean` removes. It never touches the
// machine's own kernel, network or modules.
//
// # Running it
//
//	apt-get install --no-install-recommends qemu-system-x86 && apt-get update
//	make test-kernels                       # both kernels, three to four minutes
//	make test-kernels KERNELS=6.1           # one of them
//
// Root is not needed: everything privileged happens in the guest. The kernels are downloaded once (60 MB) with
// `apt-get download`, which checks their signatures; without network and without a copy in bin/kernels/ the run fails and
// says which package is missing. That is why `make test` does not do this. Later runs ask apt for a newer one and do with
// the copy where there is no network.
//
// # What runs
//
// A static Go program (the folder guest) is the guest's init. It mounts what a node has, loads the modules
// that debs.go lists, and runs the steps that main.go lists, each within its own time:
//
//   - every program through the verifier, with the instructions that it went through (limit of the kernel: a million);
//   - every packet story of bpf/testdata through BPF_PROG_TEST_RUN, and a tagged frame over a real device;
//   - the datapath with real traffic: pod to pod, host to pod, pod to host and outside with masquerade, IPv4 and IPv6,
//     TCP, UDP, fragments and ping, over TCX links and over clsact filters, and a policy that changes under a connection;
//   - examples with `porin lab run`: the real agent, its store and its plugin, who may talk to whom and who may not.
//
// A step passes when its process ends with 0; tests that are skipped fail it. The runner wants a verdict about every
// step and a clean end of the guest: a panic, a hang or a guest that goes away is a failure.
//
// The guests run emulated (TCG), because that works on every machine; figures of time mean nothing there.
//
// # Another kernel
//
// Add a line to the table in debs.go: the Debian meta package of a cloud image. The guest needs veth, clsact, a bridge and
// BTF.
package main
