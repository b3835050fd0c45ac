"""What can go wrong between here and the Hub, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_TOKEN = "`hf auth login`, the environment's HF_TOKEN or token="


@contextmanager
def explained(repo_id: str, doing: str, after: str = "") -> Iterator[None]:
    """Turn the client's errors into ones that name the repository, the reason and the remedy.

    Args:
        repo_id: on the Hub.
        doing: what is being done, such as "pulling revision 'v1'".
        after: what is true of repository or folder when it has failed.

    Raises:
        FileNotFoundError: if there is no such repository or revision, or no connection and nothing in the cache.
        PermissionError: if the token, or its absence, does not allow it.
        ConnectionError: if the Hub or the connection fails, or somebody else pushed at the same time.
    """
    place = f"{repo_id} on {constants.ENDPOINT}"
    try:
        yield
    except GatedRepoError as error:
        raise PermissionError(f"{place} is gated: accept its terms there, then give a token ({_TOKEN}).") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no {place} that you may see. Check the name; a private one needs a token ({_TOKEN})."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{place} has no such branch, tag or commit ({doing}).") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"{repo_id} is not whole in the local cache {constants.HF_HUB_CACHE}, and the Hub cannot be asked now "
            f"({doing}). The client says: {error}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = f"The Hub says {status}: {error.server_message or error.response.reason_phrase}."
        if status == 401:
            raise PermissionError(
                f"{place}: the token is not valid ({doing}). {said} Give one: {_TOKEN}.{after}"
            ) from error
        if status == 403:
            raise PermissionError(f"{place}: this token does not allow {doing}. {said}{after}") from error
        if status in (409, 412):
            raise ConnectionError(f"{place}: somebody else changed it meanwhile ({doing}). {said}{after}") from error
        raise ConnectionError(f"{place}: {doing} failed. {said}{after}") from error
    except HTTPError as error:
        raise ConnectionError(f"The connection to {place} broke while {doing}: {error}.{after}") from error
