package agent

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// timerSlack is how much later than asked the kernel may wake a thread. The Go runtime's monitor thread asks to be woken
// every 20 us for a millisecond after each pause of work; each wake-up costs more CPU than the look that it takes, and
// together they were up to a quarter of the agent's CPU of an ADD. A goroutine whose thread blocks in the kernel waits that
// much longer for another thread when all are busy.
const timerSlack = time.Millisecond

// calmTimers gives every thread of this process that slack; later ones inherit it. It needs CAP_SYS_NICE.
func calmTimers() error {
	slack := strconv.FormatInt(timerSlack.Nanoseconds(), 10)
	for range 2 { // the second time for threads that others made before it was their turn
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("set timer slack: list threads: %w", err)
		}
		for _, t := range threads {
			err := os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", []byte(slack), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // a thread that has ended needs none
				return fmt.Errorf("set timer slack: %w", err)
			}
		}
	}
	return nil
}
