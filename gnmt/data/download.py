"""Files from public addresses: fetched in pieces of any number of attempts, checked by their sha256."""

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
    """Makes `path` hold the file at the URL; does nothing where it is there already (with that sha256, if given).

    What has come stands in `<path>.part` until it is whole, and the next attempt (of this call or of a later one) asks
    the server for the rest alone. So `path` never holds half a file. Raises InputError, which says what was tried,
    where NUM_ATTEMPTS attempts in a row brought nothing more, or the wrong bytes. advice: what the error suggests.
    """
    if path.is_file() and (sha256 is None or sha256_of(path) == sha256):
        return
    if not url.startswith(("https://", "http://")):
        raise InputError(f"the address of a file to download must begin with https:// or http://, found {url}")
    log.info("downloading %s", url)
    part = path.with_name(f"{path.name}.part")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, sha256, advice or f"Check the network, or put the file itself into {path}")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        for folder in made:  # innermost first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    _validator(part).unlink(missing_ok=True)


def _fetch(url: str, part: Path, sha256: str | None, advice: str) -> None:
    failures, problem = 0, ""
    while failures < NUM_ATTEMPTS:
        before = _size(part)
        if failures:
            pause = PAUSE_SECONDS * failures
            log.warning("%s: %s; attempt %d of %d in %.0f s", url, problem, failures + 1, NUM_ATTEMPTS, pause)
            time.sleep(pause)
        try:
            _fetch_rest(url, part)
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code == 416:
                _discard(part)  # nothing follows it: whole, or longer than the file, which has changed
            elif error.code < 500:
                failures += 1
                break  # it will answer the same again
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            found = sha256 and sha256_of(part)
            if found == sha256:
                return
            problem = f"{_size(part)} bytes with sha256 {found:.12}… came, but {sha256:.12}… is expected"
            _discard(part)
        failures = 1 if _size(part) > before else failures + 1
    raise InputError(f"could not download {url} ({failures} attempts): {problem}. {advice}")


def _fetch_rest(url: str, part: Path) -> None:
    """Appends what is missing, or begins again where the server cannot continue or its file is another one by now."""
    start = _size(part)
    request = urllib.request.Request(url)
    if start and _validator(part).is_file():
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", _validator(part).read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        continued = response.status == 206 and _first_byte(response.headers["Content-Range"]) == start
        if not continued:
            start = 0
        length = response.headers["Content-Length"]
        total = None if length is None else start + int(length)
        known_as = response.headers["ETag"] or response.headers["Last-Modified"]
        if known_as and not known_as.startswith("W/"):  # a weak tag does not promise the same bytes
            _validator(part).write_text(known_as, encoding="utf-8")
        else:
            _validator(part).unlink(missing_ok=True)
        bar = progress_bar(description=part.stem, unit="B", total=total, initial=start, unit_scale=True, leave=False)
        with part.open("ab" if continued else "wb") as file, bar:
            while data := _read(response):
                file.write(data)
                bar.update(len(data))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK_BYTES)
    except OSError as error:  # which must not be taken for one of the disk
        raise ConnectionError(str(error)) from error


def _first_byte(content_range: str | None) -> int | None:
    found = re.match(r"bytes (\d+)-", content_range or "")
    return int(found[1]) if found else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _validator(part: Path) -> Path:
    """Where the server's name for this version of the file stands: its ETag, or when it was last changed."""
    return part.with_name(f"{part.name}.version")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)
