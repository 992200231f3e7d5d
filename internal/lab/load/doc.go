// Package load assembles porin's own load generator: request-response, connect-request-response, streams and UDP
// packets between two processes, with the CPU time that both spent.
// It reads commands on standard input and writes one JSON object per measurement on standard output; between them it
// talks only to the address it was given. It never runs longer or sends more than it was told.
package load
