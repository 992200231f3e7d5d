package datapath

// Uplinks returns the names of the devices by which pods leave the node, the preferred one first.
func (d *Datapath) Uplinks() []string { return d.host.uplinkNames() }
