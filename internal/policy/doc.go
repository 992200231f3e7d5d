// Package policy decides who may talk to whom: it turns policy documents and identities into subjects, each a map from
// peer identity to a shared, flattened verdict table. It reads documents (Parse) and identities (Engine.UpdateIdentities)
// and returns subjects, patches and explanations. It never allocates identities and never touches the kernel.
//
//	document -> Parse -> Policy{Rule{Entry}} -> Engine.UpdatePolicies -> statements, one per entry
//	identity -> Engine.UpdateIdentities -> members of each distinct peer selection
//	Resolve: statements of the rules that select the subject
//	         -> partition of the identities by the selections that hold them (resolve.go)
//	         -> one table per class: deny before allow, ranges cut where verdicts change (flatten.go)
package policy
