"""Names on the Hub become commits and files. All that stage one asks of the Hub is here.

In: the name, configuration and revision of a dataset or a model. Out: the URLs of a split's files
at one commit, or a directory with a model's files.
"""

from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.file_patterns import matching
from stages.cache_teacher.corpus.network import retrying

# Not there, no access, not allowed offline; and connections that fail, whose base class comes from
# the HTTP library that this version of huggingface_hub happens to use.
_HUB_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)


def split_files(config: CacheTeacherConfig) -> tuple[str, list[str]]:
    """The commit that the corpus's revision names, and the URLs of its split at that commit, or of
    the files that its patterns name."""
    import datasets
    from huggingface_hub import HfApi

    what = f"corpus {config.corpus!r} (revision {config.corpus_revision!r})"
    try:
        sha = retrying(
            lambda: HfApi().dataset_info(config.corpus, revision=config.corpus_revision).sha, what
        )
        assert sha is not None, "the Hub names the commit of every revision"
        if config.corpus_data_files is not None:
            names = retrying(
                lambda: HfApi().list_repo_files(config.corpus, repo_type="dataset", revision=sha),
                what,
            )
            return sha, _urls(config.corpus, sha, matching(what, names, config.corpus_data_files))
        builder = retrying(
            lambda: datasets.load_dataset_builder(
                config.corpus, config.corpus_config, revision=sha
            ),
            what,
        )
    except _HUB_ERRORS as error:
        raise ValueError(
            f"{what}: no such local path, and the Hub dataset cannot be resolved: {error}"
        ) from error
    splits = {str(split): urls for split, urls in (builder.config.data_files or {}).items()}
    if config.corpus_split not in splits:
        raise ValueError(
            f"{what}, config {config.corpus_config!r}: no split {config.corpus_split!r}; "
            f"it has {', '.join(sorted(splits)) or 'none'}"
        )
    return sha, list(splits[config.corpus_split])


def _urls(corpus: str, sha: str, names: list[str]) -> list[str]:
    return [f"hf://datasets/{corpus}@{sha}/{name}" for name in names]


def model_snapshot(config: CacheTeacherConfig, tokenizer_files: tuple[str, ...]) -> Path:
    """A directory, named after the commit, with the teacher's safetensors and tokenizer files."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = retrying(
            lambda: snapshot_download(
                config.teacher,
                revision=config.teacher_revision,
                allow_patterns=["*.safetensors", "*.json", *tokenizer_files],
                ignore_patterns=["*/*", "consolidated*"],
            ),
            f"teacher {config.teacher!r}",
        )
    except _HUB_ERRORS as error:
        reason = str(error).rstrip(". \n")  # a sentence with its own full stop
        raise ValueError(
            f"teacher {config.teacher!r} (revision {config.teacher_revision!r}): no such local "
            f"directory, and it cannot be fetched from the Hub: {reason}. On a machine without "
            "access, set teacher to a directory with the model's files."
        ) from error
    return Path(snapshot)
