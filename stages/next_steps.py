"""What a person does about an error of a stage, where a command line has an option for it.

See ``cache_format.errors`` for what goes with them.
"""

from enum import Enum, auto


class StageAction(Enum):
    """What to do."""

    RESUME = auto()
    """Resume the run."""
    EXTEND = auto()
    """Resume the run, and train for more steps."""
    INITIAL_WEIGHTS = auto()
    """Name the initial weights of a new run, or name none."""
    TEACHER_WEIGHTS = auto()
    """Say where the teacher of a cache is, which holds none of its weights."""
    LOCAL_SPACE = auto()
    """Let the local copies of a remote cache take more space."""
    RAY_ADDRESS = auto()
    """Name another Ray cluster, or none."""
    RAY_WORKERS = auto()
    """Have another number of workers in the Ray cluster."""
