//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include "maps.h"

SEC("tc/host_egress")
int host_egress(struct __sk_buff *ctx)
{
	return 2; /* nothing passes before the pipeline is there */
}

SEC("tc/uplink_ingress")
int uplink_ingress(struct __sk_buff *ctx)
{
	return -1;
}

SEC("tc/uplink_egress")
int uplink_egress(struct __sk_buff *ctx)
{
	return -1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
