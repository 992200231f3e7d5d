package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	agentv1 "porin/api/agent/v1"
	"porin/internal/kvstore"
)

// Limits of work on the store by hand: an answer must fit into a message, and a slip into a minute.
const (
	defaultKeys = 1000
	maxKeys     = 10_000
	maxValue    = 1 << 20 // etcd takes requests of 1.5 MiB
)

// GetKeys reads one key, or those below it.
func (a *api) GetKeys(ctx context.Context, req *agentv1.GetKeysRequest) (*agentv1.GetKeysResponse, error) {
	limit := int(req.GetLimit())
	switch {
	case limit == 0:
		limit = defaultKeys
	case limit > maxKeys:
		return nil, invalid("limit %d: at most %d keys are read at once; name a longer prefix", limit, maxKeys)
	}
	key := req.GetKey()
	if req.GetRecursive() {
		key = below(key)
	}
	list, more, err := a.store.Look(ctx, key, req.GetRecursive(), limit)
	if err != nil {
		return nil, advised(err)
	}
	resp := &agentv1.GetKeysResponse{More: more}
	for _, e := range list {
		resp.Keys = append(resp.Keys, &agentv1.StoreKey{
			Key: strings.ToValidUTF8(e.Key, "\uFFFD"), Value: strings.ToValidUTF8(e.Value, "\uFFFD"), Revision: e.Revision, Leased: e.Leased,
		})
	}
	return resp, nil
}

// SetKey writes a key by hand.
func (a *api) SetKey(ctx context.Context, req *agentv1.SetKeyRequest) (*agentv1.SetKeyResponse, error) {
	if n := len(req.GetValue()); n > maxValue {
		return nil, invalid("write %.200q: the value has %d bytes; the store takes %d", req.GetKey(), n, maxValue)
	}
	if err := a.store.Set(ctx, req.GetKey(), req.GetValue(), req.GetForce()); err != nil {
		return nil, advised(err)
	}
	a.changedByHand("store-key-set", req.GetKey(), 1, req.GetForce())
	return &agentv1.SetKeyResponse{}, nil
}

// DeleteKeys deletes one key by hand, or those below it. Below it, nothing is deleted if one is refused that is there at
// the start; each is asked about again when its turn comes.
func (a *api) DeleteKeys(ctx context.Context, req *agentv1.DeleteKeysRequest) (*agentv1.DeleteKeysResponse, error) {
	key, force := req.GetKey(), req.GetForce()
	if !req.GetRecursive() {
		if err := a.store.Remove(ctx, key, force); err != nil {
			return nil, advised(err)
		}
		a.changedByHand("store-key-deleted", key, 1, force)
		return &agentv1.DeleteKeysResponse{Deleted: 1}, nil
	}
	key = below(key)
	list, more, err := a.store.Look(ctx, key, true, maxKeys)
	switch {
	case err != nil:
		return nil, advised(err)
	case more:
		return nil, invalid("delete below %s: more than %d keys are there; name longer prefixes", key, maxKeys)
	case len(list) == 0:
		return nil, advised(fmt.Errorf("delete below %s: %w", key, kvstore.ErrNoKey))
	}
	for _, e := range list {
		if e.Leased && !force {
			return nil, advised(fmt.Errorf("delete below %s: nothing was deleted, because of %s: %w", key, e.Key, kvstore.ErrLeased))
		}
	}
	deleted := 0
	for _, e := range list {
		switch rerr := a.store.Remove(ctx, e.Key, force); {
		case rerr == nil:
			deleted++
		case errors.Is(rerr, kvstore.ErrNoKey): // somebody else was faster
		default:
			err = fmt.Errorf("delete below %s: %d of %d keys are gone: %w", key, deleted, len(list), rerr)
		}
		if err != nil {
			break
		}
	}
	if deleted > 0 {
		a.changedByHand("store-key-deleted", key, deleted, force)
	}
	if err != nil {
		return nil, advised(err)
	}
	return &agentv1.DeleteKeysResponse{Deleted: uint32(deleted)}, nil
}

// below is the beginning of all keys below a key: of porin/a these are those of porin/a/, never porin/ab.
func below(key string) string {
	return strings.TrimRight(key, "/") + "/"
}

// advised says what to do about an error of a change by hand.
func advised(err error) error {
	switch {
	case errors.Is(err, kvstore.ErrLeased):
		return fmt.Errorf("%w; --force changes it all the same", err)
	case errors.Is(err, kvstore.ErrNoKey):
		return fmt.Errorf("%w; 'porin kvstore get porin --recursive' shows those there are", err)
	}
	return err
}

// changedByHand leaves a trace: what people change in the store explains what nodes do afterwards.
func (a *api) changedByHand(what, key string, keys int, force bool) {
	a.log.Warn("store changed by hand", "what", what, "key", key, "keys", keys, "force", force)
	a.observer.Announce(&agentv1.AgentEvent{Type: what, Text: fmt.Sprintf("%s: %d keys", key, keys)})
}
