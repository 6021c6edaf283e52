"""Refuse an option that is given twice and takes one value: click itself keeps the last in silence.

In: a command and the words typed after its name. Out: a usage error that names the option.
"""

from collections.abc import Sequence

import click


def refuse_repeated_options(
    command: click.Command, ctx: click.Context, words: Sequence[str]
) -> None:
    """Raise UsageError if ``words`` give a value to one option of ``command`` more than once.

    ``multiple`` options may be repeated, and so may flags, which say the same thing twice.
    """
    own = command.context_class(command, info_name=command.name, parent=ctx)
    _, _, given = command.make_parser(own).parse_args(list(words))
    for parameter in dict.fromkeys(given):
        if not isinstance(parameter, click.Option) or given.count(parameter) == 1:
            continue
        if not (parameter.multiple or parameter.is_flag or parameter.count):
            names = " / ".join(parameter.opts)
            raise click.UsageError(
                f"Option {names} was given {given.count(parameter)} times; it takes one value.", own
            )
