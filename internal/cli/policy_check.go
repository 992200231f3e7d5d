package cli

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"porin/internal/flow"
	"porin/internal/policy/advise"
)

func policyTest() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Check policies against expected verdicts, without an agent",
		Long: `Each FILE has workloads, policies (objects: file or inline) and checks, in the shape of a lab file: the same file that runs
here in milliseconds without root also runs on real packets with 'porin lab run'. -f adds policies to those of the
files. A check that needs a wire (run, http) is skipped, and says so. For one that does not hold, the rule that decided.

A check is {from, to, port, protocol, family, expect}; expect is allow, deny, audit or redirect, or reject, which for policy
is allow. To expect allow is not to ask whether it is reported, or goes through the proxy.
` + endHelp,
		Example: `  porin policy test examples/starwars/lab.yaml
  porin policy test tests/*.yaml -f policies/ -o junit > report.xml`,
		Args: between(1, -1, "FILE"),
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "more policies: file, folder, or - for the standard input (may be repeated)")
	out := outputFlag(cmd, "junit")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		more, err := policies(cmd, files)
		if err != nil {
			return err
		}
		var all []advise.Result
		for _, path := range args {
			f, err := workloadFile(path)
			if err != nil {
				return err
			}
			if len(f.Checks) == 0 {
				return fmt.Errorf("%s: no checks in it; write checks: [{from: a, to: b, port: 80, expect: allow}]", path)
			}
			w, err := f.World(more)
			if err != nil {
				return err
			}
			results, err := w.Test(path, f.Checks)
			if err != nil {
				return err
			}
			all = append(all, results...)
		}
		failed, skipped := tally(all)
		if out.format == "junit" {
			err = printJUnit(cmd.OutOrStdout(), all)
		} else {
			err = out.print(cmd.OutOrStdout(), asJSON(all), func(w io.Writer) error { return printResults(w, all, failed, skipped) })
		}
		if err == nil && failed > 0 {
			err = fmt.Errorf("%d of %d did not hold", failed, len(all)-skipped)
		}
		return err
	}
	return cmd
}

func tally(all []advise.Result) (failed, skipped int) {
	for _, r := range all {
		switch {
		case r.Skipped != "":
			skipped++
		case !r.OK:
			failed++
		}
	}
	return failed, skipped
}

func printResults(w io.Writer, all []advise.Result, failed, skipped int) error {
	var rows [][]string
	for _, r := range all {
		state, why := "ok", deciders(r.Rules)
		switch {
		case r.Skipped != "":
			state, why = "skip", r.Skipped
		case !r.OK:
			state = "FAIL"
		}
		rows = append(rows, []string{state, r.Check, r.Expected, r.Got, r.Side, why})
	}
	if err := paintedTable(w, []string{"RESULT", "CHECK", "EXPECTED", "GOT", "SIDE", "DECIDED BY"}, rows, 0, 3); err != nil {
		return err
	}
	for _, r := range all {
		if !r.OK {
			fmt.Fprintf(w, "\n%s\n", flow.Escape(failure(r)))
		}
	}
	fmt.Fprintf(w, "\n%d held, %d did not, %d skipped\n", len(all)-failed-skipped, failed, skipped)
	return nil
}

// failure says of a check that did not hold what decided.
func failure(r advise.Result) string {
	text := fmt.Sprintf("%s:%d: %s (%s to %s on %s): expected %s, got %s; decided at %s by ", r.File, r.Line, r.Check, r.From, r.To, r.Port, r.Expected, r.Got, ends(r.Side))
	return text + ruleNames(r.Rules)
}

func ends(side string) string {
	if side == "both" {
		return "both ends"
	}
	return side
}

// The shape of a JUnit report, as CI systems read it.
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Skipped  int          `xml:"skipped,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	File    string        `xml:"file,attr"`
	Line    int           `xml:"line,attr"`
	Failure *junitMessage `xml:"failure"`
	Skipped *junitMessage `xml:"skipped"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// caseName is the check, with the ICMP type where it has several.
func caseName(r advise.Result) string {
	name := r.Check
	if !strings.HasSuffix(name, r.Port) {
		name += " (" + r.Port + ")"
	}
	return name + " expect " + r.Expected
}

func printJUnit(w io.Writer, all []advise.Result) error {
	report := junitSuites{}
	for _, r := range all {
		if n := len(report.Suites); n == 0 || report.Suites[n-1].Name != r.File {
			report.Suites = append(report.Suites, junitSuite{Name: r.File})
		}
		s := &report.Suites[len(report.Suites)-1]
		c := junitCase{Name: caseName(r), Class: r.File, File: r.File, Line: r.Line}
		report.Tests, s.Tests = report.Tests+1, s.Tests+1
		switch {
		case r.Skipped != "":
			c.Name, c.Skipped = r.Check, &junitMessage{Message: r.Skipped}
			report.Skipped, s.Skipped = report.Skipped+1, s.Skipped+1
		case !r.OK:
			c.Failure = &junitMessage{Message: fmt.Sprintf("expected %s, got %s", r.Expected, r.Got), Text: failure(r)}
			report.Failures, s.Failures = report.Failures+1, s.Failures+1
		}
		s.Cases = append(s.Cases, c)
	}
	text, err := xml.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("write the JUnit report: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, text)
	return err
}
