"""The frame of both commands: options before the verb, and one line for wrong usage."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from featurize.cli.console import EXIT_DONE, EXIT_UNEXPECTED, EXIT_WRONG_INPUT, print_stderr
from featurize.text import did_you_mean

# Typer exports this leaf of its errors only. The class above it is that of all wrong usage.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
COMPLETION_OPTIONS = ("--install-completion", "--show-completion")
SHELLS = ("bash", "zsh", "fish")


class VerbGroup(TyperGroup):
    """A command with verbs. Wrong usage ends it with one line, as any other error does."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line.

        Parameters
        ----------
        args : sequence of str, optional
            Its words; default those of the process.
        prog_name : str, optional
            The command's name, for messages.
        complete_var : str, optional
            The environment variable by which a shell asks for completion.
        standalone_mode : bool
            Whether to end the process; else what a verb returns is returned, and wrong usage is
            raised.
        windows_expand_args : bool
            Whether to expand globs on Windows.
        **extra
            For the context of the command.

        Returns
        -------
        object
            What the verb returns, if not `standalone_mode`.

        Raises
        ------
        SystemExit
            With the exit code, if `standalone_mode`.
        """
        words = list(sys.argv[1:] if args is None else args)
        settings = {
            "prog_name": prog_name,
            "complete_var": complete_var,
            "windows_expand_args": windows_expand_args,
            **extra,
        }
        if not standalone_mode:
            return super().main(words, standalone_mode=False, **settings)
        try:
            code = super().main(words, standalone_mode=False, **settings)
        except USAGE_ERROR as error:
            verb = f" {words[0]}" if words[:1] and words[0] in self.commands else ""
            print_stderr(f"error: {_describe(error, f'{prog_name or self.name}{verb}')}")
            sys.exit(EXIT_WRONG_INPUT)
        if code == EXIT_UNEXPECTED and words[:1] and words[0] in COMPLETION_OPTIONS:
            _refuse_shell(prog_name or str(self.name))
        sys.exit(code if isinstance(code, int) else EXIT_DONE)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words; without any, print the help on stderr.

        Parameters
        ----------
        ctx : Context
            That of the command.
        args : list of str
            Its words.

        Returns
        -------
        list of str
            The words that are left.

        Raises
        ------
        typer.Exit
            If there are none.
        """
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help(), file=sys.stderr)
            raise typer.Exit(EXIT_WRONG_INPUT)
        return list(super().parse_args(ctx, args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb.

        Parameters
        ----------
        ctx : Context
            That of the command.
        args : list of str
            The verb and its words.

        Returns
        -------
        tuple of (str, Command, list of str)
            The verb and its words.

        Raises
        ------
        UsageError
            If there is no such verb; the message suggests one. If an option that takes one value
            is given twice, of which the last would silently win.
        """
        if not ctx.resilient_parsing:
            if args[0] not in self.commands:
                ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], self.commands)}")
            for option in _list_repeated(self.commands[args[0]].params, args[1:]):
                ctx.fail(f"{option} is given twice, and takes one value")
        return super().resolve_command(ctx, args)


def _list_repeated(params: Iterable[Any], words: Sequence[str]) -> list[str]:
    """List the options of a verb that are given twice and take one value."""
    options = {name: param for param in params for name in param.opts if name.startswith("-")}
    counts: Counter[str] = Counter()
    remaining = iter(words)
    for word in remaining:
        name, _, value = word.partition("=")
        param = options.get(name)
        if word == "--":
            break
        if param is None or param.is_flag:
            continue
        if not value:
            next(remaining, None)  # the option's value
        if not param.multiple:
            counts[max(param.opts, key=len)] += 1
    return [name for name, count in counts.items() if count > 1]


def _describe(error: Any, command: str) -> str:
    """Describe wrong usage: what is wrong, what may be meant, which help to read."""
    message = error.format_message().removesuffix(".").replace("argument(s)", "argument")
    message = message[:1].lower() + message[1:]
    if hasattr(error, "possibilities"):  # an option that does not exist
        message = f"no option {error.option_name}{_suggest_option(error.option_name, error.ctx)}"
    return f"{message}; see `{command} --help`"


def _suggest_option(name: str, context: Any) -> str:
    for verb, verb_command in getattr(context.command, "commands", {}).items():
        if name in _list_options(verb_command.params):
            return f" before the verb; write `{context.command_path} {verb} {name}`"
    return did_you_mean(name, _list_options(context.command.get_params(context)))


def _list_options(params: Iterable[Any]) -> list[str]:
    return [word for param in params for word in param.opts if word.startswith("-")]


def _refuse_shell(command: str) -> NoReturn:
    variable = f"_{command.upper()}_COMPLETE"
    lines = ", ".join(f"`{variable}=source_{shell} {command}`" for shell in SHELLS)
    print_stderr(
        f"error: the shell was not recognised as {', '.join(SHELLS)}; their lines, to be added to "
        f"what the shell reads at its start, are printed by {lines}"
    )
    sys.exit(EXIT_WRONG_INPUT)


def make_app(name: str, description: str) -> typer.Typer:
    """Make a command line without verbs, with ``--version`` and the options for completion.

    Parameters
    ----------
    name : str
        The command: ``featurize`` or ``classify``.
    description : str
        A sentence for ``--help``.

    Returns
    -------
    Typer
        The application that the verbs are added to.
    """
    app = typer.Typer(
        name=name,
        cls=VerbGroup,
        help=description,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    def print_version(requested: bool) -> None:
        if requested:
            from importlib.metadata import version

            print(f"{name} (headgraft) {version('headgraft')}")
            raise typer.Exit

    help_text = "Print the version."
    option = typer.Option("--version", callback=print_version, is_eager=True, help=help_text)

    def handle_options(version: Annotated[bool, option] = False) -> None:
        pass

    app.callback()(handle_options)
    return app
