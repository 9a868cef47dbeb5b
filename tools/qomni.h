/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The subcommands of the qomni tool. Each gets its own argv (argv[0] is the
 * subcommand) and returns the exit status.
 */
#pragma once

#include <json-glib/json-glib.h>
#include <stdio.h>

#include "model.h"

G_BEGIN_DECLS

enum
{
  STATUS_OK = 0,
  STATUS_FAILED = 1,            /* one sentence on stderr says why */
  STATUS_USAGE = 2,
};

int command_info (int argc, char **argv);
int command_tokenize (int argc, char **argv);
int command_detokenize (int argc, char **argv);
int command_generate (int argc, char **argv);

/* Parses `entries`, wants exactly the positional argument MODEL behind them
 * (taken out of argv). On false the usage error has been printed. */
bool command_parse (int *argc, char ***argv, const GOptionEntry * entries,
    const char *summary, const char **ret_model);
/* Prints the error and returns STATUS_FAILED. */
int command_fail (const GError * error);
/* Prints what was built, on one line of stdout. */
void command_print_json (JsonBuilder * builder);

G_END_DECLS
