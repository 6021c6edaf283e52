"""A student uploaded to the Hugging Face Hub.

In: a run or model directory and the name of a repository. Out: the URL of what was uploaded. Called
by ``pipeline push``.
"""

from pathlib import Path

from pipeline.students.student_files import model_directory


def push_model(run: Path, repo_id: str, *, is_private: bool, revision: str | None) -> str:
    """Upload the student of ``run`` to ``repo_id``, which is made if there is none.

    ``revision`` is a branch, made if there is none; by default the main one. Raises ValueError if
    ``run`` holds no student, or the Hub refuses.
    """
    path = model_directory(run)
    from stages.train_student.export.published_files import published_files

    files = published_files(path)
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise ValueError(
            "no token for the Hugging Face Hub. Create one with write access at "
            "https://huggingface.co/settings/tokens, then `hf auth login`, or set HF_TOKEN."
        )
    api = HfApi()
    # Beside what the Hub says: connections that fail, whose base class comes from the HTTP library
    # that this version of huggingface_hub happens to use.
    failures: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    try:
        # None leaves the organisation's default to the Hub.
        api.create_repo(repo_id, private=is_private or None, exist_ok=True)
        if is_private and not api.model_info(repo_id).private:
            raise ValueError("it already exists and is public; --private does not change that")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            revision=revision,
            allow_patterns=files,
            commit_message="Upload student",
        )
    except (HfHubHTTPError, ValueError) as error:
        raise ValueError(
            f"{repo_id}: cannot be uploaded to: {error}\nIts name has the form USER/NAME, and the "
            "token must have write access to it. Run the same command to try again."
        ) from error
    except failures as error:
        raise ValueError(
            f"{repo_id}: the Hub cannot be reached: {error}\nIs there a network? The same command "
            "tries again."
        ) from error
    return str(commit.commit_url)
