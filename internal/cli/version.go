package cli

import (
	"context"
	"encoding/json"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	agentv1 "porin/api/agent/v1"
)

func (s *shell) versionCommand() *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of this command and of the running agent",
		Long: "Shows the version of this command and, if it can be reached, of the agent. An agent that cannot be reached is no error.",
		Example: `  porin version
  porin version --client -o json`,
		Args: exactly(),
	}
	out := outputFlag(cmd)
	cmd.Flags().BoolVar(&client, "client", false, "do not ask the agent")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := struct {
			Client string `json:"client"`
			Agent  string `json:"agent,omitempty"`
			Go     string `json:"go"`
		}{Client: Version, Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}
		if !client {
			err := s.ask(cmd, func(ctx context.Context, agent agentv1.AgentClient) error {
				st, err := agent.Status(ctx, &agentv1.StatusRequest{})
				v.Agent = st.GetVersion()
				return err
			})
			if err != nil {
				v.Agent = "unknown: " + err.Error()
			}
		}
		return out.print(cmd.OutOrStdout(), func() ([]byte, error) { return json.Marshal(v) }, func(w io.Writer) error {
			return page(w, "Client:", v.Client, "Agent:", v.Agent, "Go:", v.Go)
		})
	}
	return cmd
}

func completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print a script that completes porin's commands in your shell",
		Example: `  source <(porin completion bash)                                    # this shell
  porin completion bash > /etc/bash_completion.d/porin               # every bash
  porin completion zsh > "${fpath[1]}/_porin"
  porin completion fish > ~/.config/fish/completions/porin.fish`,
		Args:      exactly("SHELL"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root, w := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(w, true)
			case "zsh":
				return root.GenZshCompletion(w)
			case "fish":
				return root.GenFishCompletion(w, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(w)
			}
			return usage("shell %q: no completion for it; the shells are %v", args[0], shells)
		},
	}
}
