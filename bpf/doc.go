// Package bpf defines the programs and maps that porin runs in the kernel, and their Go twins.
// It reads nothing and writes nothing: the compiled objects are embedded, package datapath loads them.
// It never touches the kernel outside its own tests.
package bpf
