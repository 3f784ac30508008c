"""A folder to a repository of the Hugging Face hub; what the hub refuses is one line."""

from __future__ import annotations

from pathlib import Path

from align.errors import UserError


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Make the repository unless it is there, upload the folder, and return its address; UserError on any refusal."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Model and card")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{repository} was not uploaded ({reason}); log in with `hf auth login`, or write a folder with --out"
        ) from error
    return f"https://huggingface.co/{repository}"
