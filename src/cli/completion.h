/* SPDX-License-Identifier: Apache-2.0 */
/* Completion of command lines in shells: the words come from the option tables and from what is there. */
#ifndef VIV_CLI_COMPLETION_H
#define VIV_CLI_COMPLETION_H

#include <stdio.h>

/**
 * completion_words() - what the last word of a command line can become.
 * @words, @n: the command line up to the cursor, "viv" first; the last one may be empty
 * Prints a line each, "WORD<tab>HELP", and the line ":files" where a file is wanted too.  What cannot be read (a
 * machine's files) is left out: there is nobody to tell in the middle of a line.
 */
void completion_words(char *const *words, unsigned n, FILE *out);

#endif
