"""The code that the directory of a hybrid student carries, and what names it in its config.json.

In: a model directory. Out: modules in it from which Hugging Face takes the student's classes when
it is told ``trust_remote_code=True``.
"""

from pathlib import Path

from stages.train_student.modeling.carried_code import carried_files

_OWN = (
    *("configuration", "directory_code", "feature_map", "full_attention", "layer", "mixer"),
    *("modeling", "pattern", "projections", "settings", "state", "teacher_family"),
)
_LAYERS = (
    *("document_masks", "document_scans", "mlstm", "mlstm_chunkwise", "normalized_mlstm"),
    *("normalized_mlstm_chunks", "sliding_window", "window_bands"),
    *("slstm", "slstm_autograd", "slstm_backend", "slstm_loop"),  # which the masks are for as well
)
_MODULES = (
    "causal_student",
    *(f"hybrid_xlstm.{name}" for name in _OWN),
    *(f"layers.{name}" for name in _LAYERS),
)

# Both in one module: transformers would import two that import each other twice.
AUTO_MAP = {
    "AutoConfig": "modeling_hybrid_xlstm.HybridXLSTMConfig",
    "AutoModelForCausalLM": "modeling_hybrid_xlstm.HybridXLSTMForCausalLM",
}


def directory_code() -> dict[str, str]:
    """Source text by the name of the file."""
    return carried_files(_MODULES)


def write_directory_code(directory: Path) -> None:
    """Write the modules that ``AUTO_MAP`` needs into ``directory``."""
    for name, source in directory_code().items():
        (directory / name).write_text(source, encoding="utf-8")
