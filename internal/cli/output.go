package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"porin/internal/flow"
)

// output is the value of -o.
type output struct {
	format string
	known  []string
}

// outputFlag adds -o with the formats that every list has, and more.
func outputFlag(cmd *cobra.Command, more ...string) *output {
	o := &output{format: "table", known: append([]string{"table", "json", "yaml"}, more...)}
	cmd.Flags().VarP(o, "output", "o", "format: "+strings.Join(o.known, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(o.known, cobra.ShellCompDirectiveNoFileComp)) // fails only without the flag
	return o
}

// String, Set and Type make output a flag.
func (o *output) String() string { return o.format }

func (o *output) Set(s string) error {
	if !slices.Contains(o.known, s) {
		return fmt.Errorf("no such format; the formats are %s", strings.Join(o.known, ", "))
	}
	o.format = s
	return nil
}

func (o *output) Type() string { return "FORMAT" }

// print writes data, a JSON text, as JSON or YAML, or calls table.
func (o *output) print(w io.Writer, data func() ([]byte, error), table func(w io.Writer) error) error {
	if o.format == "table" {
		return table(w)
	}
	text, err := data()
	if err != nil {
		return err
	}
	if o.format == "yaml" {
		text, err = toYAML(text)
	} else {
		text, err = indent(text)
	}
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

func indent(text []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		return nil, fmt.Errorf("the agent's answer is not JSON: %w", err)
	}
	b.WriteByte('\n')
	return flow.EscapeJSON(b.Bytes()), nil
}

// message is a protobuf message as JSON; every field is there, so that scripts need not know the defaults.
func message(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write the agent's answer as JSON: %w", err)
	}
	return b, nil
}

// messages is a list of them as a JSON array.
func messages[M proto.Message](ms []M) ([]byte, error) {
	parts := make([][]byte, len(ms))
	for i, m := range ms {
		b, err := message(m)
		if err != nil {
			return nil, err
		}
		parts[i] = b
	}
	return array(parts), nil
}

func array(parts [][]byte) []byte {
	return slices.Concat([]byte("["), bytes.Join(parts, []byte(",")), []byte("]"))
}

// object is cells under their columns as a JSON object, in the order of the columns.
func object(columns, cells []string) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, c := range cells {
		key := fmt.Sprintf("column%d", i+1)
		if i < len(columns) {
			key = strings.ToLower(strings.ReplaceAll(columns[i], " ", "_"))
		}
		pair := make([][]byte, 2)
		for j, s := range []string{key, c} {
			q, err := json.Marshal(s)
			if err != nil {
				return nil, fmt.Errorf("write a row as JSON: %w", err)
			}
			pair[j] = q
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(bytes.Join(pair, []byte(":")))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// toYAML writes a JSON text as YAML, the fields in the same order.
func toYAML(text []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	node, err := yamlNode(dec)
	if err != nil {
		return nil, fmt.Errorf("the agent's answer is not JSON: %w", err)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(node), enc.Close()); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return b.Bytes(), nil
}

func yamlNode(dec *json.Decoder) (*yaml.Node, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch v := tok.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		if v == '{' {
			n = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		}
		for dec.More() {
			child, err := yamlNode(dec) // a key is a string token like any other
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		_, err := dec.Token()
		return n, err
	case string:
		n := &yaml.Node{}
		n.SetString(v)
		if strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' }) {
			n.Style = yaml.DoubleQuotedStyle // the only style in which an escape is read back
		}
		return n, nil
	case json.Number:
		tag := "!!int"
		if strings.ContainsAny(v.String(), ".eE") {
			tag = "!!float"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: v.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(v)}, nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
}

// table writes columns and rows, one line each whatever is in the cells.
func table(w io.Writer, columns []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(columns) > 0 {
		fmt.Fprintln(tw, strings.Join(columns, "\t"))
	}
	for _, r := range rows {
		cells := make([]string, len(r))
		for i, c := range r {
			cells[i] = flow.Escape(c)
			if cells[i] == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// page writes names and values, one pair a line, leaving out those without a value.
func page(w io.Writer, pairs ...string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(tw, "%s\t%s\n", pairs[i], flow.Escape(pairs[i+1]))
		}
	}
	return tw.Flush()
}
