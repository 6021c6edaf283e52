"""The command group: turns what a command raises into a message and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 130 interrupted, 143 terminated. Wrapped
around every command of ``cli.py``.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from pipeline.runtime.repeated_options import refuse_repeated_options

if TYPE_CHECKING:
    from pipeline.recipes.recipe import Recipe
    from pipeline.reporting.reporter import Reporter


_SECONDS_TO_REPEAT = 0.05


@dataclass
class Session:
    """What the failure of a command may need to be explained, and who else is told of it."""

    is_debug: bool
    recipe: "Recipe | None" = None
    reporter: "Reporter | None" = None

    def report_error(self, message: str, exit_code: int) -> None:
        """Send ``message`` to the log file and the JSON that the command was told to write."""
        if self.reporter is not None:
            from pipeline.reporting.events import Event

            fields = {"message": message, "exit_code": exit_code}
            with suppress(OSError):  # where the log file is what failed
                self.reporter.send(Event(name="error", text=message, fields=fields))


class PipelineGroup(click.Group):
    """A group whose commands may raise; its object is a ``Session``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are used."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that ``args`` name, and its own words; see ``repeated_options``."""
        name, command, words = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            refuse_repeated_options(command, ctx, words)
        return name, command, words

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises ends here, unless another command called this one."""
        if ctx.obj is not None:
            return super().invoke(ctx)
        ctx.obj = session = Session(is_debug=bool(ctx.params["debug"]))
        try:
            with _terminated_like_interrupted(), interrupts_again():
                return super().invoke(ctx)
        except (click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except click.ClickException as error:
            session.report_error(error.format_message(), error.exit_code)
            raise
        except KeyboardInterrupt as error:
            ctx.exit(_report_interrupt(error, ctx.invoked_subcommand or "", session))
        except Exception as error:
            ctx.exit(_report_failure(error, ctx.invoked_subcommand or "", session))
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust: a tokenizer that is none, say
                raise
            failure = RuntimeError(f"a library rejected its input: {error}")
            ctx.exit(_report_failure(failure, ctx.invoked_subcommand or "", session))


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers take a machine back; ends a command as Ctrl-C does."""


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Raise ``Terminated`` for SIGTERM inside the block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interrupts_again() -> Iterator[None]:
    """Inside the block, an interruption that Python drops is repeated.

    A handler that runs in a finalizer or a weak reference's callback raises where nothing can be
    raised: Python reports the exception and goes on as if nobody had asked.
    """
    before = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            before(dropped)
            return
        is_terminated = isinstance(dropped.exc_value, Terminated)
        number = signal.SIGTERM if is_terminated else signal.SIGINT
        # Later, or it would be raised in here.
        again = threading.Timer(_SECONDS_TO_REPEAT, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _report_interrupt(error: KeyboardInterrupt, command: str, session: Session) -> int:
    """Say on stderr what the interruption left behind; returns the exit code."""
    from pipeline.runtime.failures import interrupted

    is_terminated = isinstance(error, Terminated)
    what = "Terminated by a signal (SIGTERM)" if is_terminated else "Interrupted"
    exit_code = 143 if is_terminated else 130
    message = interrupted(command, what)
    click.echo(f"\n{message}", err=True)
    session.report_error(message, exit_code)
    return exit_code


def _report_failure(error: Exception, command: str, session: Session) -> int:
    """Say on stderr what went wrong; returns the exit code. A bug is raised."""
    from pipeline.recipes.recipe import RecipeError
    from pipeline.reporting.printable import printable
    from pipeline.runtime.failures import explain, says_all

    is_known = isinstance(error, ValueError | OSError | RuntimeError | MemoryError)
    message, exit_code = printable(explain(error, command, session.recipe)), 1
    if isinstance(error, RecipeError):
        message += f"\n{error.advice}"
        exit_code = 2
    session.report_error(message, exit_code)
    if not is_known and not session.is_debug:
        raise error
    if session.is_debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.secho("Error: ", fg="red", nl=False, err=True)
    click.echo(message, err=True)
    if exit_code == 1 and not says_all(error) and not session.is_debug:
        click.echo("(PIPELINE_DEBUG=1 shows where it happened.)", err=True)
    return exit_code
