/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "qk.h"

/* Times the ops of a level on `threads` threads (0: all CPUs) beside the limits
 * of the machine, read in the same run. Returns an exit status. */
int bench_run (QkCpuLevel level, int threads, const char *only);
