/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "types.h"
#include "verdict.h"

#include <bpf/bpf_helpers.h>

/*
 * Words that only inline functions use vanish from BTF, and the parity tests with them. These dummies keep them, in a section of
 * their own: no loader makes a map of it.
 */

#define EXPORT_TYPE(TYPE, NAME) TYPE *NAME##_type SEC("words")

EXPORT_TYPE(enum verdict, verdict);
EXPORT_TYPE(enum action, action);
EXPORT_TYPE(enum direction, direction);
EXPORT_TYPE(enum drop_reason, drop_reason);
EXPORT_TYPE(enum event_type, event_type);
EXPORT_TYPE(enum point, point);
EXPORT_TYPE(enum ct_status, ct_status);
EXPORT_TYPE(enum endpoint_flag, endpoint_flag);
EXPORT_TYPE(enum peer_flag, peer_flag);
EXPORT_TYPE(enum table_flag, table_flag);
EXPORT_TYPE(enum verdict_flag, verdict_flag);
EXPORT_TYPE(enum ct_flag, ct_flag);
EXPORT_TYPE(enum setting_flag, setting_flag);
EXPORT_TYPE(enum tunnel, tunnel);
EXPORT_TYPE(struct event, event);
