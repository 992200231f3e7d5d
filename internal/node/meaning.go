package node

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"porin/internal/labels"
)

// Meaning is a hash of a label set's canonical text. As JSON it is 16 hexadecimal digits.
type Meaning [8]byte

// MeaningOf returns the hash of ls.
func MeaningOf(ls labels.Labels) (m Meaning) {
	sum := sha256.Sum256([]byte(ls.Key()))
	copy(m[:], sum[:])
	return m
}

// MarshalText writes the digits.
func (m Meaning) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(m[:])), nil }

// UnmarshalText reads the digits.
func (m *Meaning) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(m)) {
		return fmt.Errorf("meaning %q: %d hexadecimal digits are wanted", text, hex.EncodedLen(len(m)))
	}
	_, err := hex.Decode(m[:], text)
	return err
}
