"""Download files, with resumption after interruptions and a check of their SHA-256.

`download` is the only public function. Received bytes are kept in `<path>.part`, and the ETag or modification time of
the server's file in `<path>.part.version`. A later attempt requests only the rest if these show an unchanged file.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
import urllib.request
from pathlib import Path

from gnmt.errors import InputError
from gnmt.fileio import sha256_of
from gnmt.logs import progress_bar

log = logging.getLogger(__name__)

NUM_ATTEMPTS = 3
PAUSE_SECONDS = 1.0
_TIMEOUT_SECONDS = 30.0
_BLOCK_BYTES = 1 << 20


def download(url: str, path: Path, sha256: str | None = None, *, advice: str | None = None) -> None:
    """Download a file, unless `path` exists (with this SHA-256, if one is given).

    `path` is never incomplete: bytes are received in `<path>.part`, and the next attempt, of this call or of a later
    one, resumes from there.

    Args:
        url: Address, which begins with https:// or http://.
        path: Path of the file; its folder is created.
        sha256: Expected SHA-256; None accepts any content.
        advice: End of the error message, in place of the usual advice.

    Raises:
        InputError: NUM_ATTEMPTS attempts in a row received nothing new or the wrong bytes, the server gave an answer
            that another attempt cannot change, or the path cannot be written.
    """
    if path.is_file() and (sha256 is None or sha256_of(path) == sha256):
        return
    if not url.startswith(("https://", "http://")):
        raise InputError(f"the address of a file to download must begin with https:// or http://, found {url}")
    log.info("downloading %s", url)
    partial = path.with_name(f"{path.name}.part")
    new_folders = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, partial, sha256, advice or f"Check the network, or copy the file to {path} yourself")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        for folder in new_folders:  # innermost first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    _version_file(partial).unlink(missing_ok=True)


def _fetch(url: str, partial: Path, sha256: str | None, advice: str) -> None:
    """Complete the partial file in several attempts; see `download`."""
    failures, problem = 0, ""
    while failures < NUM_ATTEMPTS:
        before = _size(partial)
        if failures:
            pause = PAUSE_SECONDS * failures
            log.warning("%s: %s; attempt %d of %d in %.0f s", url, problem, failures + 1, NUM_ATTEMPTS, pause)
            time.sleep(pause)
        try:
            _fetch_rest(url, partial)
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code == 416:
                _discard(partial)  # the partial file is at least as long as the file on the server
            elif error.code < 500:
                failures += 1
                break  # another attempt would get the same answer
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            if sha256 is None or (found := sha256_of(partial)) == sha256:
                return
            problem = f"received {_size(partial)} bytes with sha256 {found:.12}…, expected sha256 {sha256:.12}…"
            _discard(partial)
        failures = 1 if _size(partial) > before else failures + 1
    raise InputError(f"could not download {url} ({failures} attempts): {problem}. {advice}")


def _fetch_rest(url: str, partial: Path) -> None:
    """Append the missing bytes, or download from the start if the server cannot resume or its file has changed."""
    start = _size(partial)
    request = urllib.request.Request(url)
    if start and _version_file(partial).is_file():
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", _version_file(partial).read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        resumed = response.status == 206 and _first_byte(response.headers["Content-Range"]) == start
        if not resumed:
            start = 0
        length = response.headers["Content-Length"]
        total = None if length is None else start + int(length)
        version = response.headers["ETag"] or response.headers["Last-Modified"]
        if version and not version.startswith("W/"):  # a weak ETag does not guarantee equal bytes
            _version_file(partial).write_text(version, encoding="utf-8")
        else:
            _version_file(partial).unlink(missing_ok=True)
        bar = progress_bar(description=partial.stem, unit="B", total=total, initial=start, unit_scale=True, leave=False)
        with partial.open("ab" if resumed else "wb") as file, bar:
            while data := _read(response):
                file.write(data)
                bar.update(len(data))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(partial) != total:
        raise ConnectionError(f"the connection ended after {_size(partial)} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK_BYTES)
    except OSError as error:  # an OSError outside this function is an error of the disk
        raise ConnectionError(str(error)) from error


def _first_byte(content_range: str | None) -> int | None:
    found = re.match(r"bytes (\d+)-", content_range or "")
    return int(found[1]) if found else None


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.is_file() else 0


def _version_file(partial: Path) -> Path:
    """Return the path of the file with the ETag or modification time of the server's file."""
    return partial.with_name(f"{partial.name}.version")


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _version_file(partial).unlink(missing_ok=True)
