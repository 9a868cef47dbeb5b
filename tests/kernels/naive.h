/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "qk.h"

/* Every arithmetic op by its definition: plain loops in double. The stream is
 * not used. */
extern const QkOps naive_ops;
