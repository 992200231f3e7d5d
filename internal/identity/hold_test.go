package identity

import (
	"errors"
	"slices"
	"testing"

	"porin/internal/labels"
)

func TestHeldNumberStaysKnown(t *testing.T) {
	n := newNode(newFakeStore())
	if _, ok := n.Hold(300); ok {
		t.Error("held a number that nobody knows")
	}
	n.heard(true, 300, "k8s:app=a;")
	for range 2 {
		if id, ok := n.Hold(300); !ok || id.Labels.Key() != "k8s:app=a;" {
			t.Fatalf("hold: %v %v", id, ok)
		}
	}
	n.heard(false, 300, "")
	n.LetGo(300)
	if _, ok := n.Get(300); !ok {
		t.Error("forgotten while an address has it")
	}
	n.LetGo(300)
	if _, ok := n.Get(300); ok {
		t.Error("still known though nobody has it")
	}
	n.heard(true, 301, "k8s:app=b;")
	n.Hold(301)
	n.LetGo(301)
	if _, ok := n.Get(301); !ok {
		t.Error("let go took away what the store has")
	}
}

// A number comes to mean something else only once no address has it.
func TestMeaningChangesAfterTheAddressesWent(t *testing.T) {
	var n *node
	var calls []string
	refuse := false
	n = newNode(newFakeStore(), func(c *Config) {
		c.Withdraw = func(id ID) error {
			if refuse {
				return errors.New("the kernel says no")
			}
			row, _ := n.Get(id)
			_, free := n.Hold(id)
			calls = append(calls, "withdraw "+row.Labels.Key())
			if free {
				t.Error("the number could be taken while it changes")
			}
			return nil
		}
		c.Told = func(id ID) {
			row, ok := n.Hold(id)
			if !ok {
				t.Error("told, but not to be had")
			}
			n.LetGo(id)
			calls = append(calls, "told "+row.Labels.Key())
		}
	})
	n.heard(true, 300, "k8s:app=a;")
	n.heard(true, 300, "k8s:app=a;")
	n.heard(true, 300, "k8s:app=b;")
	want := []string{"told k8s:app=a;", "told k8s:app=a;", "withdraw k8s:app=a;", "told k8s:app=b;"}
	if !slices.Equal(calls, want) {
		t.Errorf("calls %q, want %q", calls, want)
	}
	refuse = true
	n.heard(true, 300, "k8s:app=c;")
	if row, _ := n.Get(300); row.Labels.Key() != "k8s:app=b;" {
		t.Errorf("the number means %s though an address still has it", row.Labels.Key())
	}
	refuse = false
	if err := n.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if row, _ := n.Get(300); row.Labels.Key() != "k8s:app=c;" {
		t.Errorf("the number means %s after the second try", row.Labels.Key())
	}
}

func TestOtherClusters(t *testing.T) {
	n := newNode(newFakeStore(), func(c *Config) { c.ClusterID = 2 })
	far := origin{7, "far"}
	mine := func(name string) string {
		return labels.New(labels.Label{Source: labels.SourceK8s, Key: labels.KeyCluster, Value: name}).Key()
	}
	n.heard(true, 2<<16|300, mine("near"))
	n.heard(true, 300, mine("near"))            // of a cluster without an id
	n.hear(far, true, 7<<16|300, mine("far"))   // right
	n.hear(far, true, 7<<16|301, mine("near"))  // passes its workload for one of ours
	n.hear(far, true, 7<<16|302, "k8s:app=x;")  // says nothing
	n.hear(far, true, 2<<16|303, mine("far"))   // our number
	n.hear(far, true, 7<<16|5, mine("far"))     // not in the range
	n.hear(far, true, 1<<24|300, mine("far"))   // node-local
	n.hear(far, false, 2<<16|300, mine("near")) // takes ours away
	if got := ids(n); !slices.Equal(got, []ID{2<<16 | 300, 7<<16 | 300}) {
		t.Errorf("known: %v", got)
	}
	if got := n.Refused(); got != 7 {
		t.Errorf("%d refused, want 7", got)
	}
	n.Hold(7<<16 | 300)
	n.Leave(7)
	if got := ids(n); len(got) != 2 {
		t.Errorf("known while an address has it: %v", got)
	}
	n.LetGo(7<<16 | 300)
	if got := ids(n); !slices.Equal(got, []ID{2<<16 | 300}) {
		t.Errorf("known after the cluster left: %v", got)
	}
}
