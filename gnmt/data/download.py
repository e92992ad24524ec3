"""Files from the public repositories of corpora, checked against their known sha256."""

from __future__ import annotations

import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from pathlib import Path

from gnmt.files import write_atomically
from gnmt.types import InputError

log = logging.getLogger(__name__)

NUM_ATTEMPTS = 3
PAUSE_SECONDS = 1.0
_TIMEOUT_SECONDS = 30.0


def download(url: str, path: Path, sha256: str) -> None:
    """Makes `path` hold the file at the URL; does nothing where it already holds a file with that sha256.

    Written under a temporary name and renamed, so that the path never holds half a file. Raises
    InputError, which says what was tried, where NUM_ATTEMPTS attempts did not bring the right bytes.
    """
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return
    log.info("downloading %s", url)
    data = _fetch(url, sha256)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _fetch(url: str, sha256: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise InputError(f"data.url must begin with https:// or http://, found {url}")
    problem = ""
    for attempt in range(NUM_ATTEMPTS):
        time.sleep(PAUSE_SECONDS * attempt)
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                data: bytes = response.read()
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code < 500:
                break  # it will answer the same again
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            found = hashlib.sha256(data).hexdigest()
            if found == sha256:
                return data
            problem = f"{len(data)} bytes with sha256 {found[:12]}… came, but {sha256[:12]}… is expected"
    raise InputError(
        f"could not download {url} ({attempt + 1} attempts): {problem}. "
        "Check the network, or put the corpus into a folder yourself and name it with data.folder=PATH"
    )
