package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
	"porin/internal/flow"
)

func (s *shell) kvstoreCommand() *cobra.Command {
	return group("kvstore", "Look at and change what the agents keep in their store",
		"  porin kvstore get porin --recursive\n  porin kvstore delete porin/test/1 --yes",
		s.kvstoreGet(), s.kvstoreSet(), s.kvstoreDelete())
}

func (s *shell) kvstoreGet() *cobra.Command {
	req := &agentv1.GetKeysRequest{}
	cmd := &cobra.Command{
		Use:   "get PREFIX|KEY",
		Short: "Show a key of the store, or all below it",
		Long: `Shows a key of the store that the agent uses, its own or the cluster's etcd; with --recursive the keys below it, as if they
were files in folders. LEASED keys go with the node that wrote them. Only keys that begin with porin/ can be read.`,
		Example: `  porin kvstore get porin --recursive
  porin kvstore get porin/test/1 -o json`,
		Args: exactly("PREFIX or KEY"),
	}
	out := outputFlag(cmd)
	cmd.Flags().BoolVarP(&req.Recursive, "recursive", "r", false, "all keys below PREFIX")
	cmd.Flags().Uint32Var(&req.Limit, "limit", 1000, "show at most so many, up to 10000")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if req.GetLimit() == 0 {
			return usage("--limit 0: at least one key is wanted")
		}
		if err := sendable("KEY", args[0]); err != nil {
			return err
		}
		req.Key = args[0]
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.GetKeys(ctx, req)
			if err != nil {
				return err
			}
			err = out.print(cmd.OutOrStdout(), func() ([]byte, error) { return messages(r.GetKeys()) }, func(w io.Writer) error {
				var rows [][]string
				for _, k := range r.GetKeys() {
					leased := ""
					if k.GetLeased() {
						leased = "yes"
					}
					rows = append(rows, []string{k.GetKey(), strconv.FormatInt(k.GetRevision(), 10), leased, k.GetValue()})
				}
				return table(w, []string{"KEY", "REVISION", "LEASED", "VALUE"}, rows)
			})
			if err == nil && r.GetMore() {
				fmt.Fprintf(cmd.ErrOrStderr(), "there are more than these %d: raise --limit, or name a longer prefix\n", len(r.GetKeys()))
			}
			return err
		})
	}
	return cmd
}

func (s *shell) kvstoreSet() *cobra.Command {
	req := &agentv1.SetKeyRequest{}
	cmd := &cobra.Command{
		Use:   "set KEY VALUE",
		Short: "Write a key of the store",
		Long: `Writes a key of the store, which every agent of the cluster reads and acts upon: a wrong record can misdirect or cut off
workloads. The agent logs the change. A record of a node that is alive is refused; with --force it is written, and that node
writes its own again. Put -- before a VALUE that begins with a dash.`,
		Example: `  porin kvstore set porin/test/1 hello --yes
  porin kvstore set --yes porin/test/1 -- -1`,
		Args: exactly("KEY", "VALUE"),
	}
	yes := consentFlags(cmd, &req.Force)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for i, name := range []string{"KEY", "VALUE"} {
			if err := sendable(name, args[i]); err != nil {
				return err
			}
		}
		if !*yes {
			return usage("set %s: every agent that uses the store acts upon it; add --yes if you mean it", args[0])
		}
		req.Key, req.Value = args[0], args[1]
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			if _, err := agent.SetKey(ctx, req); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "set %s\n", flow.Escape(req.GetKey()))
			return err
		})
	}
	return cmd
}

func (s *shell) kvstoreDelete() *cobra.Command {
	req := &agentv1.DeleteKeysRequest{}
	cmd := &cobra.Command{
		Use:   "delete KEY",
		Short: "Delete a key of the store, or all below it",
		Long: `Deletes a key of the store, which every agent of the cluster reads and acts upon; with --recursive all keys below it: below
porin/a are those of porin/a/, not porin/ab, nor porin/a itself. The agent logs the change. Records of nodes that are alive
are refused, and then nothing below KEY is deleted; with --force they are, and these nodes write them again.`,
		Example: `  porin kvstore delete porin/test/1 --yes
  porin kvstore delete porin/test --recursive --yes`,
		Args: exactly("KEY"),
	}
	yes := consentFlags(cmd, &req.Force)
	cmd.Flags().BoolVarP(&req.Recursive, "recursive", "r", false, "all keys below KEY")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := sendable("KEY", args[0]); err != nil {
			return err
		}
		if !*yes {
			return usage("delete %s: every agent that uses the store acts upon it; add --yes if you mean it", args[0])
		}
		req.Key = args[0]
		return s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
			r, err := agent.DeleteKeys(ctx, req)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "deleted %s\n", count(r.GetDeleted(), "key"))
			return err
		})
	}
	return cmd
}

// consentFlags adds what a change of the store by hand must or may say.
func consentFlags(cmd *cobra.Command, force *bool) (yes *bool) {
	cmd.Flags().BoolVar(force, "force", false, "also records of nodes that are alive")
	return cmd.Flags().Bool("yes", false, "yes, change the store (without it nothing is asked of the agent)")
}

// sendable refuses what no message can carry.
func sendable(name, value string) error {
	if !utf8.ValidString(value) {
		return usage("%s %.80q: only text in UTF-8 can be sent", name, value)
	}
	return nil
}
