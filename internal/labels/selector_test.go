package labels

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func set(t testing.TB, ss ...string) Labels {
	t.Helper()
	ls, err := ParseAll(ss...)
	if err != nil {
		t.Fatal(err)
	}
	return ls
}

func TestSelectorMatches(t *testing.T) {
	ls := set(t, "k8s:app=web", "container:app=proxy", "k8s:tier=", "k8s:k8s.io/zone=a", "reserved:init")
	for _, c := range []struct {
		selector string
		want     bool
	}{
		{"", true},
		{"app=web", true},
		{"any:app=web", true},
		{"k8s:app=web", true},
		{"container:app=web", false},
		{"k8s:app=proxy", false},
		{"app=proxy", true}, // any source: one of them fits
		{"app in (x,proxy)", true},
		{"app in (x,y)", false},
		{"app notin (x)", true},
		{"app notin (proxy)", false}, // any source: one of them is excluded
		{"k8s:app notin (proxy)", true},
		{"app!=web", false},
		{"missing!=web", true}, // absent is not equal
		{"missing notin (a,b)", true},
		{"app", true},
		{"!app", false},
		{"container:app", true},
		{"!cni:app", true},
		{"missing", false},
		{"!missing", true},
		{"tier=", true},
		{"tier", true},
		{"app=", false},
		{"missing=", false}, // absent is not empty
		{"k8s.io/zone=a", true},
		{"k8s:k8s.io/zone=a", true},
		{"reserved:init", true},
		{"reserved:init=", true},
		{"k8s:app=web,container:app=proxy", true},
		{"k8s:app=web,container:app=web", false},
		{"k8s.app=web", false}, // a dot ends no source
	} {
		s, err := ParseSelector(c.selector)
		if err != nil {
			t.Errorf("%q: %v", c.selector, err)
			continue
		}
		if got := s.Matches(ls); got != c.want {
			t.Errorf("%q on %s: %t, want %t", c.selector, ls, got, c.want)
		}
	}
}

func TestSelectorCanonical(t *testing.T) {
	for _, c := range [][2]string{
		{"b=1,a=1", "a=1,b=1"},
		{"a in (2,1,2)", "a in (1,2)"},
		{"a in (1)", "a=1"},
		{"a==1", "a=1"},
		{"any:a=1", "a=1"},
		{"a!=1", "a notin (1)"},
		{"a=1,a=1", "a=1"},
		{" a = 1 , ! b ", "!b,a=1"},
	} {
		s, err := ParseSelector(c[0])
		if err != nil {
			t.Errorf("%q: %v", c[0], err)
			continue
		}
		if s.String() != c[1] {
			t.Errorf("%q: canonical text %q, want %q", c[0], s, c[1])
		}
	}
}

func TestSelectorRefuses(t *testing.T) {
	for _, c := range []struct {
		req  Requirement
		want string
	}{
		{Requirement{Key: "a", Operator: "in", Values: []string{"b"}}, "unknown"},
		{Requirement{Key: "a", Operator: In}, "at least one value"},
		{Requirement{Key: "a", Operator: NotIn}, "at least one value"},
		{Requirement{Key: "a", Operator: Exists, Values: []string{"b"}}, "takes no values"},
		{Requirement{Key: "a", Operator: DoesNotExist, Values: []string{"b"}}, "takes no values"},
		{Requirement{Key: "", Operator: Exists}, "empty"},
		{Requirement{Key: "a b", Operator: Exists}, "key"},
		{Requirement{Key: "a\x1b[2J", Operator: Exists}, "key"},
		{Requirement{Key: "a:b", Operator: Exists}, "key"},
		{Requirement{Key: "-a", Operator: Exists}, "key"},
		{Requirement{Key: "a/", Operator: Exists}, "key"},
		{Requirement{Key: "a", Source: "k8s ", Operator: Exists}, "source"},
		{Requirement{Key: strings.Repeat("a", 600), Operator: Exists}, "longer"},
		{Requirement{Key: "a", Source: strings.Repeat("a", 600), Operator: Exists}, "longer"},
		{Requirement{Key: "a", Operator: In, Values: []string{"x\ny"}}, "value"},
		{Requirement{Key: "a", Operator: In, Values: []string{"x,y"}}, "value"},
		{Requirement{Key: "a", Operator: In, Values: []string{"ü"}}, "value"},
		{Requirement{Key: "a", Operator: In, Values: []string{strings.Repeat("v", 254)}}, "longer"},
	} {
		if s, err := NewSelector(c.req); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: selector %q, error %v; want an error with %q", c.req, s, err, c.want)
		}
	}
	for _, text := range []string{",", "a,", ",a", "a in (b", "a in b)", "a on (b)", "a in ()x", "in (a)", "a in (b))", "!", "=x", "a in ((b))"} {
		if s, err := ParseSelector(text); err == nil {
			t.Errorf("%q is read as %q, want an error", text, s)
		}
	}
}

func TestSelectorAnd(t *testing.T) {
	s, err := ParseSelector("a=1")
	if err != nil {
		t.Fatal(err)
	}
	both, err := s.And(Requirement{Source: "k8s", Key: "b", Operator: Exists})
	if err != nil || both.String() != "a=1,k8s:b" || s.String() != "a=1" {
		t.Errorf("and: %q, %v; original %q", both, err, s)
	}
}

// FuzzSelector: what is read has a canonical text that reads back to itself and matches the same.
func FuzzSelector(f *testing.F) {
	for _, s := range []string{"", "a", "!a", "a=b", "k8s:a!=b", "a in (b,c),d notin (,e)", "any:x/y=1", "a==", "a in ()", "((", "a=b=c"} {
		f.Add(s)
	}
	sets := []Labels{nil, set(f, "k8s:a=b"), set(f, "container:a=c", "k8s:a", "any:x/y=1")}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err != nil {
			return
		}
		again, err := ParseSelector(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q: canonical text %q reads back as %q, %v", text, s, again, err)
		}
		for _, ls := range sets {
			if s.Matches(ls) != again.Matches(ls) {
				t.Fatalf("%q and its canonical text %q differ on %s", text, s, ls)
			}
		}
	})
}

// TestAndIsNew: one condition more makes the selector that all conditions together make, wherever its text belongs.
func TestAndIsNew(t *testing.T) {
	bases := []string{"", "b=1", "a in (x,y),m", "a in (x,y),m=,!z", "m", "k8s:m=1,m=1", "!a,m notin (p,q)", "any.b,m=2"}
	for _, base := range bases {
		s, err := ParseSelector(base)
		if err != nil {
			t.Fatal(err)
		}
		for _, more := range []string{"m", "!m", "a=1", "m=", "m=1", "k8s:m=1", "z=1", "m=2", "any:m=1", "a in (x,y)", "a in (y,x)", "m notin (q,p)", "!z"} {
			one, err := ParseSelector(more)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.And(one.Requirements()...)
			if err != nil {
				t.Fatal(err)
			}
			want, err := NewSelector(append(slices.Clone(s.Requirements()), one.Requirements()...)...)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%q and %q is %+v, want %+v", base, more, got, want)
			}
		}
	}
	if _, err := (Selector{}).And(Requirement{Key: "a", Operator: In}); err == nil {
		t.Error("a condition without values is taken")
	}
}
