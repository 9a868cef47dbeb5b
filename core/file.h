/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Regular files that we do not trust: opened without blocking, never a FIFO or
 * a directory, read at an offset. What the operating system does may be
 * replaced, so that tests can make it fail.
 */
#pragma once

#include <sys/types.h>

#include "types.h"

G_BEGIN_DECLS

/* pread (2): bytes read, 0 at the end, -1 with errno. */
typedef struct _QomniFileIo
{
  ssize_t (*read_at) (void *user_data, int fd, void *dst, size_t bytes,
      uint64_t offset);
  void *user_data;
} QomniFileIo;

/* Opens a regular file for reading: the descriptor, or -1 with an error that
 * names `path`. Symbolic links are followed. */
int qomni_file_open (const char *path, uint64_t * ret_size, GError ** error);
/* Exactly `bytes` bytes; interrupted and short reads go on. io NULL: pread.
 * `path` is for the message. */
bool qomni_file_read_at (const QomniFileIo * io, int fd, const char *path,
    void *dst, size_t bytes, uint64_t offset, GError ** error);
/* Whether a directory has that entry, be it a dangling link. */
bool qomni_file_exists (const char *directory, const char *name);
/* The error code that fits an errno of open() or stat(). */
QomniErrorCode qomni_file_error_code (int errno_value);

G_END_DECLS
