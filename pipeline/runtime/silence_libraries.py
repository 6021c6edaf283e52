"""Keep the libraries' chatter off the terminal; what they download keeps its bars."""

import os

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TOKENIZERS_PARALLELISM": "true",
}


def silence_libraries(*, show_downloads: bool = True) -> None:
    """Imports transformers; a variable that the user has set wins."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import transformers
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    (enable_progress_bars if show_downloads else disable_progress_bars)()
