"""An untrained student as a Hugging Face model directory, like those that training publishes.

In: a student that was made from all of its teacher's weights, and the teacher's tokenizer and
directory. Out: a directory with weights, config, generation config, code, tokenizer, model card and
checksums, published whole or not at all.
"""

import json
import os
from pathlib import Path
from typing import Any

from cache_format.metadata.strict_json import read_object
from cache_format.storage.atomic import publish_directory
from stages.model_files.redirects import refuse_redirects
from stages.model_files.tokenizer_files import pass_on_tokenizer
from stages.train_student.config import TrainStudentConfig
from stages.train_student.export.checksums import write_checksums
from stages.train_student.export.model_card import untrained_card

_GENERATION = "generation_config.json"


def publish_untrained(
    model: Any, config: TrainStudentConfig, teacher: Path, tokenizer: Path, target: Path
) -> None:
    """Write ``model`` to the new directory ``target``, and make those above it.

    ``tokenizer`` is a directory that holds the tokenizer's files, ``teacher`` the teacher's own,
    whose settings of generation are passed on. Raises ValueError where these cannot be.
    """
    if (teacher / _GENERATION).is_file():
        model.generation_config = _generation_config(teacher / _GENERATION)
    card = untrained_card(model, config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish_directory(target) as temporary:
        model.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        pass_on_tokenizer(os.listdir(tokenizer), tokenizer.joinpath, temporary)
        write_checksums(temporary)


def _generation_config(path: Path) -> Any:
    from transformers import GenerationConfig

    step = "Correct it, or delete it to generate with the defaults."
    refuse_redirects(path)
    fields = read_object(path, step)
    try:
        found = GenerationConfig.from_dict(json.loads(json.dumps(fields)))
        found.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: transformers refuses it: {error}. {step}") from error
    return found
