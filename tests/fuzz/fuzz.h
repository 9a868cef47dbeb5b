/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a fuzz target is: libFuzzer calls it with made-up inputs, replay.c with
 * the files of a corpus. A fault is a crash, a sanitizer's report or abort().
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput (const uint8_t * data, size_t size);
