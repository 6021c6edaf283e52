"""The error message that the user sees when a command fails.

In: the exception that ended the command, the command's name and its recipe. Out: a message that
ends with the next step.
"""

import errno

from cache_format.errors import Action, CacheError, NextStep
from pipeline.recipes.recipe import Recipe
from pipeline.runtime.next_steps import how_to
from stages.compute.out_of_memory import is_out_of_memory

_INTERRUPTED = {
    "cache-teacher": "Finished shards are kept: run the same command again to continue.",
    "train-student": "Run the same command with --resume to continue from the newest "
    "checkpoint, or without it if there is none yet.",
    "ablate": "Finished runs and checkpoints are kept: run the same command again to continue.",
    "pack": "No partial file was left: run the same command again to start over.",
    "unpack": "Files unpacked so far are kept: run the same command again to continue.",
    "merge": "Merged units are kept: run the same command again to continue.",
    "extend": "Finished shards are kept: run the same command again to continue.",
    "export": "Finished files are kept: run the same command again to continue.",
    "verify": "Run the same command again to check the remaining files.",
    "demo": "Finished work is kept: run the same command again to continue.",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FREE_SPACE = NextStep(
    "Free some disk space and run again; finished work is kept.", Action.RUN_AGAIN
)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def interrupted(command: str, what: str = "Interrupted") -> str:
    """What Ctrl-C, or another end from outside, left behind, and how to go on."""
    return f"{what}. {_INTERRUPTED.get(command, '')}".strip()


def explain(error: Exception, command: str, recipe: Recipe | None) -> str:
    """The message for ``error``."""
    step = _FREE_SPACE if _is_full(error) else getattr(error, "next_step", NextStep(""))
    return "\n".join([_message(error, command, recipe), *how_to([step], command)])


def _message(error: Exception, command: str, recipe: Recipe | None) -> str:
    if is_out_of_memory(error):
        return f"out of memory: {_first_line(error)}\n{_smaller(command, recipe or Recipe())}"
    if _is_full(error):
        return f"{error}\n{_FREE_SPACE}"
    if isinstance(error, OSError) and error.errno in _FORBIDDEN and error.filename:
        return (
            f"{error.filename}: {error.strerror}. Make it and its directory readable "
            "and writable, or choose another path."
        )
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def says_all(error: Exception) -> bool:
    """Whether ``error`` is explained without the place in the program where it happened."""
    return isinstance(error, CacheError) or (
        isinstance(error, OSError) and error.errno in _FULL + _FORBIDDEN
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _smaller(command: str, recipe: Recipe) -> str:
    """The settings to lower, with their values now."""
    one, two = recipe.cache_teacher, recipe.train_student
    if command == "cache-teacher":
        num_rows = one.rows_per_forward
        now = "as many as fit" if num_rows is None else num_rows
        return (
            f"Lower cache_teacher.rows_per_forward (now {now}) or "
            f"cache_teacher.head_chunk (now {one.head_chunk}), such as\n"
            f"  --set cache_teacher.rows_per_forward={max(1, (num_rows or 16) // 2)} "
            f"--set cache_teacher.head_chunk={max(1, one.head_chunk // 2)}\n"
            "and run the command again; finished shards are kept."
        )
    if command == "demo":
        return "Run the commands it printed with lower settings (`pipeline recipes demo`)."
    if command == "train-student":
        return (
            f"Lower train_student.batch_size (now {two.batch_size}) and raise "
            "train_student.gradient_accumulation_steps (now "
            f"{two.gradient_accumulation_steps}) by as much, or lower train_student.loss_chunk "
            f"(now {two.loss_chunk}), such as\n"
            f"  --set train_student.batch_size={max(1, two.batch_size // 2)} "
            "--set train_student.gradient_accumulation_steps="
            f"{two.gradient_accumulation_steps * 2} "
            f"--set train_student.loss_chunk={max(1, two.loss_chunk // 2)}\n"
            "and run the command again; with another --out if the run has a checkpoint, because "
            "it then keeps its batch_size."
        )
    return "Use a device with more memory."
