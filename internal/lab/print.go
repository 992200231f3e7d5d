package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"porin/internal/flow"
)

// Output formats.
const (
	asTable = "table"
	asJSON  = "json"
)

func checkFormat(format string) error {
	if format != asTable && format != asJSON {
		return fmt.Errorf("output format %q: known are %s and %s", format, asTable, asJSON)
	}
	return nil
}

// report is what `lab check -o json` prints.
type report struct {
	Lab    string `json:"lab"`
	OK     bool   `json:"ok"`
	Checks []Row  `json:"checks"`
}

func allOK(rows []Row) bool {
	for _, r := range rows {
		if !r.OK {
			return false
		}
	}
	return true
}

func printRows(w io.Writer, format, name string, rows []Row) error {
	if format == asJSON {
		return printJSON(w, report{Lab: name, OK: allOK(rows), Checks: rows})
	}
	table := [][]string{{"CHECK", "FAMILY", "EXPECTED", "SEEN", "RESULT", "RULE"}}
	failed := 0
	for _, r := range rows {
		result := "OK"
		why := r.Rule
		if !r.OK {
			failed++
			result = "FAIL"
			why = strings.Join(notEmpty(r.Detail, r.Rule), "; ")
		}
		table = append(table, []string{r.Check, dash(r.Family), r.Expected, r.Seen, result, dash(why)})
	}
	if err := printTable(w, table); err != nil {
		return err
	}
	verdict := "every check held"
	if failed > 0 {
		verdict = fmt.Sprintf("%d of %d checks did not hold", failed, len(rows))
	}
	_, err := fmt.Fprintf(w, "\n%s: %d checks, %s\n", name, len(rows), verdict)
	return err
}

func notEmpty(list ...string) []string {
	var out []string
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func printTable(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i := range r {
			r[i] = flow.Escape(r[i]) // texts come from files, programs and the network
		}
		if _, err := fmt.Fprintln(tw, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // "->" stays readable
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
