"""``--quick``: a benchmark at smaller sizes, whose figures say that they are rough.

In: the sizes that take the place of a command's defaults; what is typed wins over them. Out: an
option for the command, and ``show``, which prints figures and, of a quick run, the sizes they have.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import click

_KEY = "benchmarks.quick"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def quick_option(**sizes: Any) -> Callable[[_Command], _Command]:
    """``--quick``, with ``sizes`` by the names of the command's parameters.

    To be the first below ``click.command``, as it takes the other options' names for its help.
    """

    def choose(context: click.Context, _: click.Parameter, is_quick: bool) -> None:
        if is_quick:
            context.meta[_KEY] = sizes
            context.default_map = {**(context.default_map or {}), **sizes}

    def add(command: _Command) -> _Command:
        parameters: list[click.Parameter] = getattr(command, "__click_params__", [])
        return click.option(
            "--quick",
            is_flag=True,
            is_eager=True,  # the defaults of the others depend on it
            expose_value=False,
            callback=choose,
            help=f"Rough figures, in two minutes on two slow cores: {_typed(parameters, sizes)}.",
        )(command)

    return add


def after_quick(context: click.Context, parameter: click.Parameter, typed: Any) -> Any:
    """Callback of an option that may be repeated: what is typed is added to the quick ones."""
    assert parameter.name is not None
    first = context.meta.get(_KEY, {}).get(parameter.name, ())
    return typed if typed == first else (*first, *typed)


def show(
    figures: Mapping[Any, Any],
    as_json: bool,
    table: Callable[[Any], str] | None = None,
) -> None:
    """Print as JSON, or as ``table`` writes ``figures``: a line for each if there is none."""
    context = click.get_current_context()
    sizes = {name: context.params[name] for name in context.meta.get(_KEY, ())}
    options = _typed(context.command.params, sizes)
    if as_json:
        of_run = {"quick": True, "quick_options": options} if sizes else {}
        click.echo(json.dumps({**of_run, **figures}))
        return
    if sizes:
        click.echo(f"Rough figures, by --quick: {options}")
    click.echo((table or _lines)(figures))


def _lines(figures: Mapping[str, Any]) -> str:
    return "\n".join(f"{name:40}{value}" for name, value in figures.items())


def _typed(parameters: Iterable[click.Parameter], sizes: Mapping[str, Any]) -> str:
    """``sizes`` as one would type them."""
    by_name = {parameter.name: parameter for parameter in parameters}
    return shlex.join(
        word for name, value in sizes.items() for word in _words(by_name[name], value)
    )


def _words(parameter: click.Parameter, value: Any) -> Iterator[str]:
    option = parameter.opts[0]
    if isinstance(value, bool):
        yield option if value else parameter.secondary_opts[0]
        return
    for each in value if isinstance(value, tuple) else (value,):
        yield from (option, str(each))
