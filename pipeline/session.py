"""The command group: turns what a command raises into a message and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 130 interrupted, 143 terminated. Wrapped
around every command of ``cli.py``.
"""

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


@dataclass
class Session:
    """What the failure of a command may need to be explained."""

    is_debug: bool
    recipe: "Recipe | None" = None


class PipelineGroup(click.Group):
    """A group whose commands may raise; its object is a ``Session``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are used."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises ends here, unless another command called this one."""
        if ctx.obj is not None:
            return super().invoke(ctx)
        ctx.obj = Session(is_debug=bool(ctx.params["debug"]))
        try:
            with _terminated_like_interrupted():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            from pipeline.failures import interrupted

            is_terminated = isinstance(error, Terminated)
            what = "Terminated by a signal (SIGTERM)" if is_terminated else "Interrupted"
            click.echo(f"\n{interrupted(ctx.invoked_subcommand or '', what)}", err=True)
            ctx.exit(143 if is_terminated else 130)
        except Exception as error:
            ctx.exit(_report_failure(error, ctx.invoked_subcommand or "", ctx.obj))
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust: a tokenizer that is none, say
                raise
            failure = RuntimeError(f"a library cannot go on with what it was given: {error}")
            ctx.exit(_report_failure(failure, ctx.invoked_subcommand or "", ctx.obj))


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


def _report_failure(error: Exception, command: str, session: Session) -> int:
    """Say on stderr what went wrong; returns the exit code. What is no known failure is raised."""
    from pipeline.failures import explain, says_all
    from pipeline.printable import printable
    from pipeline.recipe import RecipeError

    is_known = isinstance(error, ValueError | OSError | RuntimeError | MemoryError)
    if not is_known and not session.is_debug:
        raise error
    if session.is_debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.secho("Error: ", fg="red", nl=False, err=True)
    click.echo(printable(explain(error, command, session.recipe)), err=True)
    if isinstance(error, RecipeError):
        click.echo("`pipeline recipes distil-xlstm` prints every key with its default.", err=True)
        return 2
    if not says_all(error) and not session.is_debug:
        click.echo("(PIPELINE_DEBUG=1 shows where it happened.)", err=True)
    return 1
