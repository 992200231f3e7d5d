package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"porin/internal/flow"
	"porin/internal/policy"
	"porin/internal/policy/advise"
)

// mistake is an error of a policy file, with its place where it has one.
type mistake struct {
	File  string `json:"file"`
	Line  int    `json:"line,omitempty"`
	Field string `json:"field,omitempty"`
	Text  string `json:"text"`
}

// validated is what validate says of one file.
type validated struct {
	File     string       `json:"file"`
	Policies []policy.Ref `json:"policies"`
	Rules    int          `json:"rules"`
	Errors   []mistake    `json:"errors"`
}

func policyValidate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate FILE... | -f FILE...",
		Short: "Check policy files without an agent",
		Long: `Reads policies as the agent does and reports every fault with file, line and field: unknown fields too, since a field that
is ignored would open what its author meant to close. A FILE may be a folder (its .yaml, .yml and .json files) or - for
the standard input. Two policies of the same name are a fault. Exit code 1 if there is any.`,
		Example: `  porin policy validate policy.yaml
  porin policy validate policies/ -o json
  kubectl get cnp -A -o yaml | porin policy validate -`,
		Args: between(0, -1),
	}
	files := cmd.Flags().StringArrayP("filename", "f", nil, "file, folder, or - for the standard input (may be repeated)")
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		args = append(*files, args...)
		if len(args) == 0 {
			return usage("no file: say which, or - for the standard input")
		}
		docs, err := manifests(args, cmd.InOrStdin())
		if err != nil {
			return err
		}
		var all []*policy.Policy
		list := make([]*validated, 0, len(docs))
		wrong := 0
		for _, d := range docs {
			v := &validated{File: d.GetName(), Policies: []policy.Ref{}, Errors: []mistake{}}
			list = append(list, v)
			ps, err := policy.Parse(d.GetName(), d.GetContent())
			before := all
			all = append(all, ps...)
			if err == nil && advise.Twice(before) == nil {
				err = advise.Twice(all)
			}
			v.Errors = append(v.Errors, mistakes(d.GetName(), err)...)
			slices.SortStableFunc(v.Errors, func(a, b mistake) int { return cmp.Compare(a.Line, b.Line) })
			for _, p := range ps {
				v.Policies = append(v.Policies, p.Ref)
				v.Rules += len(p.Rules)
			}
			if len(v.Errors) > 0 {
				wrong++
			}
		}
		err = out.print(cmd.OutOrStdout(), asJSON(list), func(w io.Writer) error {
			for _, v := range list {
				for _, e := range v.Errors {
					fmt.Fprintln(w, flow.Escape(e.String()))
				}
				if len(v.Errors) == 0 {
					fmt.Fprintf(w, "%s: ok, %s, %s\n", flow.Escape(v.File), counted(len(v.Policies), "policy", "policies"), counted(v.Rules, "rule", "rules"))
				}
			}
			return nil
		})
		if err == nil && wrong > 0 {
			err = fmt.Errorf("%s of %d with faults", counted(wrong, "file", "files"), len(list))
		}
		return err
	}
	return cmd
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (m mistake) String() string {
	switch {
	case m.Line == 0:
		return m.Text
	case m.Field == "":
		return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", m.File, m.Line, m.Field, m.Text)
}

// mistakes takes a joined error apart.
func mistakes(file string, err error) (out []mistake) {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			out = append(out, mistakes(file, e)...)
		}
		return out
	}
	if f, ok := errors.AsType[*policy.FieldError](err); ok {
		return []mistake{{f.File, f.Line, f.Field, f.Text}}
	}
	return []mistake{{File: file, Text: err.Error()}}
}
