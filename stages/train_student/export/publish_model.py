"""The result of a run: a Hugging Face model directory.

In: a student, the cache or caches it learned from and, for its model card, recipe and figures. Out:
a directory with weights, config, the code that finds them, tokenizer, model card and checksums,
published whole or not at all.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_format.metadata.strict_json import read_object
from cache_format.reader import Cache
from cache_format.storage.atomic import replace_directory
from stages.model_files.tokenizer_files import pass_on_tokenizer
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.mixture import CacheMixture, mixture_of
from stages.train_student.export.checksums import write_checksums
from stages.train_student.export.model_card import model_card
from stages.train_student.students.student import Student


def publish_model(
    model: Student,
    cache: Cache | CacheMixture,
    target: Path,
    *,
    config: TrainStudentConfig | None = None,
    metrics: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """``save_pretrained`` with the teacher's tokenizer and a card beside it, published by rename.

    An older model at ``target`` stays until then. ``metrics`` are those of the last validation.
    Returns what was left out of the tokenizer's configuration, because it could make another
    program run code.
    """
    mixture = mixture_of(cache)
    reference = mixture.reference
    card = model_card(model, mixture, config, metrics or {})
    with replace_directory(target) as temporary:
        model.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        left_out = pass_on_tokenizer(reference.attachments(), reference.attachment, temporary)
        write_checksums(temporary)
        return left_out


def require_tokenizer(cache: Cache) -> None:
    """Raise, before anything is trained, where the cache's tokenizer could not be published."""
    with TemporaryDirectory() as scratch:
        pass_on_tokenizer(cache.attachments(), cache.attachment, Path(scratch))


def published_step(target: Path) -> int | None:
    """For how many steps the student at ``target`` was trained; None where it does not tell.

    Raises ValueError where ``target`` is no model directory that could be replaced.
    """
    try:
        config = read_object(target / "config.json", "")
        step: int | None = config.get("num_steps")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{target}: the trained student cannot be written here, because this is something else "
            f"({error}). Move it away and run again."
        ) from error
    return step
