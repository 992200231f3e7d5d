package agent

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
)

// live is what may change while the agent runs, until its next start.
type live struct {
	level slog.LevelVar

	mu     sync.Mutex
	values map[string]string // mu: all settings, as they are now
}

// changeable are the settings that SetConfig takes.
var changeable = []string{"log-level", "monitor-trace-all", "policy-audit-mode"}

func newLive(cfg Config) *live {
	l := &live{values: maps.Clone(cfg.values)}
	l.level.Set(cfg.LogLevel)
	return l
}

func (l *live) all() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.values)
}

// check tells whether values could be set, all of them.
func (l *live) check(values map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		v := values[key]
		if _, ok := l.values[key]; !ok {
			return fmt.Errorf("%s: no such setting; %s", key, hint(flags(), key, ""))
		}
		if !slices.Contains(changeable, key) {
			return fmt.Errorf("%s: needs a restart; write it into the config file and restart porin-agent", key)
		}
		var err error
		if key == "log-level" {
			_, err = parseLevel(v)
		} else if _, e := strconv.ParseBool(v); e != nil {
			err = fmt.Errorf("%q: true or false is wanted", v)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// set stores one checked value in the form that all settings have.
func (l *live) set(key, value string) {
	if b, err := strconv.ParseBool(value); err == nil && key != "log-level" {
		value = strconv.FormatBool(b)
	}
	l.mu.Lock()
	l.values[key] = value
	l.mu.Unlock()
	if level, err := parseLevel(value); key == "log-level" && err == nil {
		l.level.Set(level)
	}
}
