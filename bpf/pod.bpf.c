//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include "maps.h"

SEC("tc/pod_egress")
int pod_egress(struct __sk_buff *ctx)
{
	return 2; /* nothing passes before the pipeline is there */
}

char _license[] SEC("license") = "Dual BSD/GPL";
