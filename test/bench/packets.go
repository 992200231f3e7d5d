package main

import (
	"context"
	"errors"
)

func (b *bench) packets(context.Context) error { return errors.New("later") }
