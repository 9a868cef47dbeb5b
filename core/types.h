/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Forward declarations of everything that other headers point at, and the
 * error domain of the engine.
 */
#pragma once

#include <gio/gio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qk.h"

G_BEGIN_DECLS

typedef struct _QomniCheckpoint QomniCheckpoint;
typedef struct _QomniConfig QomniConfig;
typedef struct _QomniWeights QomniWeights;
typedef struct _QomniTokenizer QomniTokenizer;
typedef struct _QomniModel QomniModel;
typedef struct _QomniEmbeddings QomniEmbeddings;
typedef struct _QomniProbe QomniProbe;

typedef struct _QomniAudioTower QomniAudioTower;
typedef struct _QomniVisionTower QomniVisionTower;
typedef struct _QomniThinkerWeights QomniThinkerWeights;
typedef struct _QomniTalkerWeights QomniTalkerWeights;
typedef struct _QomniCode2WavWeights QomniCode2WavWeights;

typedef struct _QomniAudioEncoder QomniAudioEncoder;
typedef struct _QomniVisionEncoder QomniVisionEncoder;
typedef struct _QomniThinker QomniThinker;
typedef struct _QomniTalker QomniTalker;

/* What went wrong; the message names the thing, what it is and what was
 * wanted. Cancellation is G_IO_ERROR_CANCELLED. */
typedef enum
{
  QOMNI_ERROR_NOT_FOUND,        /* no such file or directory */
  QOMNI_ERROR_OPEN,             /* it is there but cannot be opened */
  QOMNI_ERROR_READ,             /* I/O error, or shorter than it says */
  QOMNI_ERROR_FORMAT,           /* malformed: JSON, header, shape, value */
  QOMNI_ERROR_UNSUPPORTED,      /* well formed, but not a model of ours */
  QOMNI_ERROR_SETTINGS,         /* settings that contradict each other or the model */
  QOMNI_ERROR_MEMORY,           /* no memory; the message says how much */
  QOMNI_ERROR_LIMIT,            /* over a limit, which the message names */
  QOMNI_ERROR_DEVICE,           /* no driver or no such device */
  QOMNI_ERROR_INPUT,            /* unusable media, text or arguments */
  QOMNI_ERROR_NUMERIC,          /* non-finite values in the network */
  QOMNI_ERROR_BACKEND,          /* a fault of the backend */
} QomniErrorCode;

#define QOMNI_ERROR (qomni_error_quark ())
GQuark qomni_error_quark (void);

/* Sets `error` and returns false: `return qomni_fail (error, …);` */
bool qomni_fail (GError ** error, QomniErrorCode code, const char *format, ...)
    G_GNUC_PRINTF (3, 4);

/* UTF-8 text of unknown length for a message: at most `max_bytes` of it, never
 * a part of a character, with "..." where it was cut. g_free(). */
char *qomni_excerpt (const char *text, size_t max_bytes);

/* true, or false with G_IO_ERROR_CANCELLED when `cancellable` is. */
bool qomni_go_on (GCancellable * cancellable, GError ** error);

/* Checked sizes: false when the result does not fit. */
bool qomni_size_mul (size_t a, size_t b, size_t * ret);
bool qomni_size_mul3 (size_t a, size_t b, size_t c, size_t * ret);
bool qomni_size_add (size_t a, size_t b, size_t * ret);

/* Limits on what comes from outside (docs/checkpoint.md is printed from it). */
#define QOMNI_MAX_HEADER_BYTES 100000000
#define QOMNI_MAX_JSON_BYTES (16 << 20)
#define QOMNI_MAX_TOKENIZER_BYTES (64 << 20)
#define QOMNI_MAX_JSON_DEPTH 64
#define QOMNI_MAX_JSON_VALUES 4000000
#define QOMNI_MAX_TENSORS 262144
#define QOMNI_MAX_SHARDS 1024
#define QOMNI_MAX_TENSOR_NAME 1024
#define QOMNI_MAX_LAYERS 512
#define QOMNI_MAX_HEADS 1024
#define QOMNI_MAX_WIDTH 65536
#define QOMNI_MAX_EXPERTS 4096
#define QOMNI_MAX_VOCABULARY (1 << 21)
#define QOMNI_MAX_IMAGE_SIDE 65535

G_END_DECLS
