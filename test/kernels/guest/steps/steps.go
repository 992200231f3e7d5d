// Package steps defines what the runner and the guest say to each other: the steps in the image, the lines on the
// console. It reads and writes nothing, and it never runs anything.
package steps

import "time"

// File is where the guest finds its steps, as JSON.
const File = "/steps.json"

// What the guest prints at the beginning of a line, followed by a space.
const (
	Boot = "porin-guest: boot" // and the kernel's release
	Pass = "porin-guest: PASS" // and a step's name
	Fail = "porin-guest: FAIL" // and a step's name, a colon and why
	Done = "porin-guest: done" // the last line
)

// Step is one program to run.
type Step struct {
	Name    string
	Dir     string
	Args    []string
	Timeout time.Duration
	Uptime  time.Duration // of the machine, at the start: wait until then
}
