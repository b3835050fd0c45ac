"""What can go wrong between here and the Hub, in words that say what to do."""

from __future__ import annotations

import json
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
_NEVER_BEGAN = ("ConnectError", "ConnectTimeout")
"""By name, as the client's HTTP library is httpx in some versions and httpx2 in others."""


@contextmanager
def explained(repo_id: str, doing: str, after: str = "") -> Iterator[None]:
    """Turn the client's errors into ones that name the repository, the reason and the remedy.

    Args:
        repo_id: on the Hub.
        doing: what is being done, such as "pulling revision 'v1'".
        after: what is true of repository or folder when the Hub has refused.

    Raises:
        FileNotFoundError: if there is no such repository or revision, or no connection and nothing in the cache.
        PermissionError: if the token, or its absence, does not allow it.
        ConnectionError: if the Hub or the connection fails, somebody else pushed at the same time, or what answers is
            not the Hub.
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
            f"({doing}: {error.__cause__ or error}). Check the connection; should a folder be meant, there is none of "
            "that name."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = f"The Hub says {status}: {(error.server_message or error.response.reason_phrase).rstrip('.')}.{after}"
        if status == 401:
            raise PermissionError(f"{place}: {doing} needs a valid token ({_TOKEN}). {said}") from error
        if status == 403:
            raise PermissionError(f"{place}: this token does not allow {doing}. {said}") from error
        if status in (409, 412):
            raise ConnectionError(f"{place}: somebody else changed it meanwhile ({doing}). {said}") from error
        raise ConnectionError(f"{place}: {doing} failed. {said}") from error
    except HTTPError as error:
        if type(error).__name__ in _NEVER_BEGAN:
            raise ConnectionError(
                f"{constants.ENDPOINT} cannot be reached, so {doing} {repo_id} is not possible ({error!s:.200}).{after}"
                " Check the connection, and HF_ENDPOINT where it is set."
            ) from error
        raise ConnectionError(
            f"The connection to {place} broke while {doing} ({error!s:.200}). Do the same again: what has "
            "arrived is kept."
        ) from error
    except OSError as error:
        if "Consistency check failed" not in str(error):
            raise
        raise ConnectionError(
            f"{place}: {doing} failed. What came is not the file, but for a part of it or a page in its place: "
            f"{str(error).splitlines()[0]:.200}.{after}"
        ) from error
    except json.JSONDecodeError as error:
        raise ConnectionError(
            f"{place}: {doing} failed. What answered is not the Hub: it sent no JSON but {_begun(error.doc)}. A proxy "
            f"or a network's login page may stand between; see HF_ENDPOINT and HTTPS_PROXY.{after}"
        ) from error
    except RuntimeError as error:  # an upload's, around one of those above
        if isinstance(error.__cause__, HTTPError):
            with explained(repo_id, doing, after):
                raise error.__cause__ from None
        raise


def _begun(page: str) -> str:
    """How a page begins."""
    return repr(" ".join(page[:200].split())[:60]) if page.strip() else "nothing"
