"""``pipeline push``: a student goes to the Hugging Face Hub."""

from pathlib import Path

import click

from pipeline.options.cache_location import RUN
from pipeline.runtime.silence_libraries import silence_libraries


@click.command()
@click.argument("run", type=RUN)
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="Make the repository private, if it is new.")
@click.option("--revision", metavar="BRANCH", help="Upload to this branch; created if needed.")
def push(run: Path, repo_id: str, private: bool, revision: str | None) -> None:
    """Upload a student to the Hugging Face Hub.

    \b
      pipeline push run me/my-student --private

    RUN is what train-student wrote with --out, or a model directory. Uploads weights, tokenizer,
    model card and the model's code (for `trust_remote_code=True`), but no cache and no checkpoints.
    Running the command again uploads what has changed.
    """
    from pipeline.students.student_files import model_directory

    model_directory(run)  # or a refusal, before what takes long to import
    silence_libraries()
    from pipeline.students.hub_upload import push_model

    url = push_model(run, repo_id, is_private=private, revision=revision)
    at_revision = "" if revision is None else f", revision={revision!r}"
    click.echo(
        f"{url}\nWhere torch, transformers and xlstm are installed, it is loaded by\n"
        f"  AutoModelForCausalLM.from_pretrained({repo_id!r}{at_revision}, trust_remote_code=True)"
    )
