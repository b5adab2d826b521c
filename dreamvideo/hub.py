"""Folders of the hub: from its cache, or else fetched."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from dreamvideo.errors import MissingWeights

__all__ = ["fetched"]


def fetched(reference: str, files: Sequence[str], *, advice: str) -> Path:
    """The folder of a hub id, with the files that fit one of the patterns.

    Args:
        advice: what to do where it cannot be had.

    Raises:
        MissingWeights: it is not on this machine and cannot be fetched.
    """
    try:
        return Path(snapshot_download(reference, allow_patterns=list(files), local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # Not in the cache: fetch it.
    except HFValidationError as error:
        raise MissingWeights(f"{reference}: neither a folder nor a hub id; {advice}") from error
    try:
        return Path(snapshot_download(reference, allow_patterns=list(files), etag_timeout=5))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise MissingWeights(f"{reference} is not on this machine and cannot be fetched: {advice}") from error
