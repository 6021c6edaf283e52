"""The few lines of code that a model directory carries, and what names them in its config.json.

In: a model directory. Out: a module in it from which Hugging Face takes the student's classes when
it is told ``trust_remote_code=True``.

The module imports the classes from this package, which must be installed, and defines nothing: so
there is one class of each, however it was found.
"""

from pathlib import Path

_MODULE = "modeling_distil_xlstm"
CODE_FILE = f"{_MODULE}.py"

AUTO_MAP = {
    "AutoConfig": f"{_MODULE}.DistilXLSTMConfig",
    "AutoModelForCausalLM": f"{_MODULE}.DistilXLSTMForCausalLM",
}

# Hugging Face looks for imports outside of `try` itself, and would tell people to install "stages".
SOURCE = '''\
"""Finds the model's classes in the package xlstm-distill, which must be installed."""

try:
    from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
    from stages.train_student.modeling.distil_xlstm.configuration import DistilXLSTMConfig
except ImportError as error:
    raise ImportError(f"this model needs the package xlstm-distill: {error}") from error

__all__ = ["DistilXLSTMConfig", "DistilXLSTMForCausalLM"]
'''


def write_directory_code(directory: Path) -> None:
    """Write the module that ``AUTO_MAP`` names into ``directory``."""
    (directory / CODE_FILE).write_text(SOURCE, encoding="utf-8")
