"""The code that the directory of a Distil-xLSTM carries, and what names it in its config.json.

In: a model directory. Out: modules in it from which Hugging Face takes the student's classes when
it is told ``trust_remote_code=True``. The sLSTM's Triton kernels are not among them: transformers
would then not load the model where Triton is missing. Without them PyTorch's loop is used.
"""

from pathlib import Path

from stages.train_student.modeling.carried_code import carried_files

_MODULES = (
    "causal_student",
    *("distil_xlstm.configuration", "distil_xlstm.directory_code", "distil_xlstm.modeling"),
    *("distil_xlstm.package_stack", "distil_xlstm.stack"),
    *("layers.document_masks", "layers.mlstm", "layers.mlstm_chunkwise"),
    *("layers.slstm", "layers.slstm_autograd", "layers.slstm_backend", "layers.slstm_loop"),
)

# Both in one module: transformers would import two that import each other twice.
AUTO_MAP = {
    "AutoConfig": "modeling_distil_xlstm.DistilXLSTMConfig",
    "AutoModelForCausalLM": "modeling_distil_xlstm.DistilXLSTMForCausalLM",
}


def directory_code() -> dict[str, str]:
    """Source text by the name of the file."""
    return carried_files(_MODULES)


def write_directory_code(directory: Path) -> None:
    """Write the modules that ``AUTO_MAP`` needs into ``directory``."""
    for name, source in directory_code().items():
        (directory / name).write_text(source, encoding="utf-8")
