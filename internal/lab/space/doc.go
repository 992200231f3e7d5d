// Package space assembles what isolates a lab: network namespaces held by files, child cgroups, a private
// mount and host name space per node, veth cables, and processes started inside them.
// It reads and writes only what its callers name; every object can be removed by its name alone, also by another
// process after a crash. It never touches the machine's own devices, routes, mounts or processes.
package space
