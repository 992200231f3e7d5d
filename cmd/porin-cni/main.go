// Command porin-cni connects containers to porin for a container runtime (CNI). It asks porin-agent on its socket and
// does nothing else itself.
package main

import (
	"os"

	"porin/internal/cni"
)

func main() { os.Exit(cni.Main()) }
