/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Reading regular files. O_NONBLOCK keeps the open of a FIFO from waiting for
 * a writer; the type is looked at on the descriptor, so that nothing can be
 * exchanged between the look and the use.
 */
#include "file.h"

#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

QomniErrorCode
qomni_file_error_code (int errno_value)
{
  return errno_value == ENOENT || errno_value == ENOTDIR
      ? QOMNI_ERROR_NOT_FOUND : QOMNI_ERROR_OPEN;
}

int
qomni_file_open (const char *path, uint64_t *ret_size, GError ** error)
{
  struct stat st;
  int fd;

  do
    fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    int e = errno;

    qomni_fail (error, qomni_file_error_code (e), "cannot open '%s': %s", path,
        g_strerror (e));
    return -1;
  }
  if (fstat (fd, &st) < 0) {
    qomni_fail (error, QOMNI_ERROR_OPEN, "cannot stat '%s': %s", path,
        g_strerror (errno));
    close (fd);
    return -1;
  }
  if (!S_ISREG (st.st_mode)) {
    qomni_fail (error, QOMNI_ERROR_OPEN, "'%s' is %s, expected a regular file",
        path, S_ISDIR (st.st_mode) ? "a directory"
        : S_ISFIFO (st.st_mode) ? "a FIFO" : "a special file");
    close (fd);
    return -1;
  }
  *ret_size = (uint64_t) st.st_size;
  return fd;
}

static ssize_t
system_read_at (void *user_data, int fd, void *dst, size_t bytes,
    uint64_t offset)
{
  return pread (fd, dst, bytes, (off_t) offset);
}

static const QomniFileIo system_io = { system_read_at, NULL };

bool
qomni_file_read_at (const QomniFileIo * io, int fd, const char *path,
    void *dst, size_t bytes, uint64_t offset, GError ** error)
{
  uint8_t *p = dst;
  size_t done = 0;

  if (io == NULL)
    io = &system_io;
  while (done < bytes) {
    ssize_t n = io->read_at (io->user_data, fd, p + done, bytes - done,
        offset + done);

    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return qomni_fail (error, QOMNI_ERROR_READ, "cannot read '%s' at byte %"
          G_GUINT64_FORMAT ": %s", path, offset + done, g_strerror (errno));
    if (n == 0)
      return qomni_fail (error, QOMNI_ERROR_READ, "'%s' ends at byte %"
          G_GUINT64_FORMAT ", expected %zu bytes from %" G_GUINT64_FORMAT,
          path, offset + done, bytes, offset);
    done += (size_t) n;
  }
  return true;
}

bool
qomni_file_exists (const char *directory, const char *name)
{
  g_autofree char *path = g_build_filename (directory, name, NULL);
  struct stat st;

  return lstat (path, &st) == 0;
}

char *
qomni_read_file (const char *path, size_t max_bytes, size_t *ret_length,
    GError ** error)
{
  g_autofree char *data = NULL;
  uint64_t size;
  bool ok;
  int fd;

  fd = qomni_file_open (path, &size, error);
  if (fd < 0)
    return NULL;
  if (size > max_bytes || size >= SIZE_MAX) {
    qomni_fail (error, QOMNI_ERROR_LIMIT, "'%s' has %" G_GUINT64_FORMAT
        " bytes, the limit is %zu", path, size, max_bytes);
    close (fd);
    return NULL;
  }
  data = g_try_malloc ((size_t) size + 1);
  if (data == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for the %"
        G_GUINT64_FORMAT " bytes of '%s'", size, path);
    close (fd);
    return NULL;
  }
  ok = qomni_file_read_at (NULL, fd, path, data, (size_t) size, 0, error);
  close (fd);
  if (!ok)
    return NULL;
  data[size] = '\0';
  if (ret_length != NULL)
    *ret_length = (size_t) size;
  return g_steal_pointer (&data);
}
