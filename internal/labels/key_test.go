package labels

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A value that looks like the end of its label must not turn one set into another.
func TestKeyOfForgedLabels(t *testing.T) {
	honest := New(Label{"container", "a", "1"}, Label{"k8s", "role", "admin"})
	for _, forged := range []Labels{
		New(Label{"container", "a", "1;k8s:role=admin"}),
		New(Label{"container", "a=1;k8s:role", "admin"}),
		New(Label{"container:a=1;k8s", "role", "admin"}),
	} {
		if forged.Key() == honest.Key() {
			t.Errorf("%v has the key of %v: %s", forged, honest, honest.Key())
		}
	}
	if got, want := honest.Key(), "container:a=1;k8s:role=admin;"; got != want {
		t.Errorf("Key: got %s want %s", got, want)
	}
}

func TestKeyRoundTrip(t *testing.T) {
	text := rapid.StringOfN(rapid.SampledFrom([]rune("ab%:=;/.é 3B")), 0, 6, -1)
	set := rapid.Custom(func(t *rapid.T) Labels {
		var ls []Label
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			ls = append(ls, Label{text.Draw(t, "source"), text.Draw(t, "key"), text.Draw(t, "value")})
		}
		return New(ls...)
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := set.Draw(t, "a"), set.Draw(t, "b")
		back, err := ParseKey(a.Key())
		if err != nil || !slices.Equal(back, a) {
			t.Fatalf("%#v: key %q reads back as %#v, %v", a, a.Key(), back, err)
		}
		if a.Key() == b.Key() && !slices.Equal(a, b) {
			t.Fatalf("%#v and %#v have one key %q", a, b, a.Key())
		}
		if i := strings.Index(a.Key(), ";/"); i >= 0 && i == len(a.Key())-2 {
			t.Fatalf("key %q ends like a store path", a.Key())
		}
	})
}

func TestParseKeyRefuses(t *testing.T) {
	for _, bad := range []string{"k8s:a=b", "k8s:b=1;k8s:a=1;", "k8s:a=%3;", "k8s:a=%zz;", "k8s:a;", "k8s:a=%3b;", "k8s:a=\n;", "k8s:a=1;k8s:a=2;", ";"} {
		if ls, err := ParseKey(bad); err == nil {
			t.Errorf("ParseKey(%q) = %v, want an error", bad, ls)
		}
	}
}
