/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv completion`: the scripts for shells.  They know nothing of viv: at each Tab they ask the program itself, with
 * `viv completion words -- WORD...`, so that they are right for every version of it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/completion.h"

static const struct opt completion_opts[] = { OPT_END };
const struct opts_cmd cli_completion_cmd = {
	.name = "viv completion",
	.usage = "bash|zsh|fish",
	.summary = "print the script that completes words in a shell",
	.details = "An installation has put it where the shell looks.  Else, in ~/.bashrc: "
		   "source <(viv completion bash);\n"
		   "in ~/.zshrc, after compinit: source <(viv completion zsh); in "
		   "~/.config/fish/config.fish: viv completion fish | source.",
	.opts = completion_opts,
	.min_args = 1,
	.max_args = 1,
	.takes_command = true,
};

/*
 * Bash Reference Manual, "Programmable Completion".  "=", ":" and "@" are words of their own there (COMP_WORDBREAKS), so what
 * stands together is put together again.  Only what follows the last of them is replaced, together with an "@".
 */
static const char bash_script[] =
	"# Completion of viv in bash, made by: viv completion bash\n"
	"_viv()\n"
	"{\n"
	"\tlocal current=${COMP_WORDS[COMP_CWORD]} rest=${COMP_LINE:0:COMP_POINT} word line before "
	"option i\n"
	"\tlocal -a words=()\n"
	"\tfor ((i = 0; i <= COMP_CWORD; i++)); do\n"
	"\t\tword=${COMP_WORDS[i]}\n"
	"\t\tif [[ $i == 0 || $rest == [[:blank:]]* ]]; then\n"
	"\t\t\twords+=(\"$word\")\n"
	"\t\telse\n"
	"\t\t\twords[-1]+=$word\n"
	"\t\tfi\n"
	"\t\trest=${rest#\"${rest%%[![:blank:]]*}\"}\n"
	"\t\trest=${rest#\"$word\"}\n"
	"\tdone\n"
	"\t[[ $current != [=:] ]] || current=\n"
	"\tbefore=${words[-1]%\"$current\"}\n"
	"\tbefore=${before%@}\n"
	"\tCOMPREPLY=()\n"
	"\twhile IFS= read -r line; do\n"
	"\t\tif [[ $line == :files ]]; then\n"
	"\t\t\tcompopt -o filenames\n"
	"\t\t\toption=\n"
	"\t\t\t[[ ${words[-1]} != --*=* ]] || option=${words[-1]%%=*}=\n"
	"\t\t\twhile IFS= read -r word; do\n"
	"\t\t\t\tword=$option$word\n"
	"\t\t\t\tCOMPREPLY+=(\"${word#\"$before\"}\")\n"
	"\t\t\tdone < <(compgen -f -- \"${words[-1]#\"$option\"}\")\n"
	"\t\telse\n"
	"\t\t\tword=${line%%$'\\t'*}\n"
	"\t\t\tCOMPREPLY+=(\"${word#\"$before\"}\")\n"
	"\t\tfi\n"
	"\tdone < <(\"${words[0]/#\\~/$HOME}\" completion words -- \"${words[@]}\" 2>/dev/null)\n"
	"}\n"
	"complete -F _viv viv\n";

/* zshcompsys(1), zshcompwid(1). */
static const char zsh_script[] =
	"#compdef viv\n"
	"# Completion of viv in zsh, made by: viv completion zsh\n"
	"_viv()\n"
	"{\n"
	"\tlocal line wants_file=0\n"
	"\tlocal -a found\n"
	"\tfor line in \"${(@f)$(\"${(Q)words[1]/#\\~/$HOME}\" completion words -- "
	"\"${(@Q)words[1,CURRENT]}\" 2>/dev/null)}\"; do\n"
	"\t\tcase $line in\n"
	"\t\t'') ;;\n"
	"\t\t:files) wants_file=1 ;;\n"
	"\t\t*) found+=(\"${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}\") ;;\n"
	"\t\tesac\n"
	"\tdone\n"
	"\t(( ! $#found )) || _describe -t words word found\n"
	"\tif (( wants_file )); then\n"
	"\t\t[[ $PREFIX != --*=* ]] || compset -P '*='\n"
	"\t\t_files\n"
	"\tfi\n"
	"}\n"
	"if [[ $funcstack[1] == _viv ]]; then\n"
	"\t_viv \"$@\"\n"
	"else\n"
	"\tcompdef _viv viv\n"
	"fi\n";

/* fish's complete(1), commandline(1). */
static const char fish_script[] =
	"# Completion of viv in fish, made by: viv completion fish\n"
	"function __viv_words\n"
	"\tset -l current (commandline -ct)\n"
	"\tset -l words (commandline -opc)\n"
	"\tset -l program (string replace -r '^~' $HOME -- $words[1])\n"
	"\tfor line in ($program completion words -- $words \"$current\" 2>/dev/null)\n"
	"\t\tif test \"$line\" = :files\n"
	"\t\t\tset -l prefix (string match -r '^--[^=]*=' -- \"$current\")\n"
	"\t\t\tfor path in (__fish_complete_path (string replace -r '^--[^=]*=' '' -- "
	"\"$current\"))\n"
	"\t\t\t\techo \"$prefix$path\"\n"
	"\t\t\tend\n"
	"\t\telse\n"
	"\t\t\techo $line\n"
	"\t\tend\n"
	"\tend\n"
	"end\n"
	"complete -c viv -f -a '(__viv_words)'\n";

static const struct {
	const char *shell, *text;
} scripts[] = { { "bash", bash_script }, { "zsh", zsh_script }, { "fish", fish_script } };

static int print_script(const char *shell, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
		if (strcmp(shell, scripts[i].shell) != 0)
			continue;
		if (fputs(scripts[i].text, stdout) == EOF || fflush(stdout) == EOF)
			return error_set(err, -EIO, "cannot write the script: %s", strerror(errno));
		return 0;
	}
	return error_set(err, -EINVAL, "there is no script for the shell \"%s\"", shell);
}

int cli_completion(int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	int status;
	char dummy;

	if (!cli_parse(&cli_completion_cmd, argc, argv, &dummy, &rest, &status))
		return status;
	if (strcmp(rest.args[0], "words") == 0 && rest.command) {
		completion_words(rest.command, rest.ncommand, stdout);
		status = fflush(stdout) == EOF ? EXIT_FAILED : EXIT_FINE;
	} else {
		int r = print_script(rest.args[0], &err);

		status = r == 0		? EXIT_FINE
			 : r == -EINVAL ? cli_usage(&cli_completion_cmd, &err)
					: cli_fail(&err);
	}
	opts_free(&cli_completion_cmd, &dummy, &rest);
	return status;
}
