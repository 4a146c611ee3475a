"""Downloads of weights: files of the Hugging Face hub, and files by URL.

Files of the hub are downloaded by huggingface_hub, whose own configuration decides: HF_ENDPOINT, HF_HOME (the cache),
HF_HUB_OFFLINE, HF_TOKEN or the token of `hf auth login`. Files by URL are cached in ~/.cache/ablate/weights; offline
mode holds for them, too. An interrupted download is resumed by the same command.
"""

import contextlib
import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from models.errors import UserError
from models.kernels import runtime
from models.weights.foreign import one_line

TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20
_SHA256 = re.compile("[0-9a-f]{64}")
_SPLIT = re.compile(r"(train|test|val)", re.IGNORECASE)  # folders of splits, not of configurations
_RESUMES = "the same command resumes it"


class NotThere(UserError):
    """A repository, a revision or a file that the hub does not have."""


def from_hub(name: str, revision: str | None, file: str) -> Path:
    """Returns the path of a file of a repository, from the cache of huggingface_hub or downloaded.

    Args:
      name: "org/name" of a repository of models.
      revision: A branch, a tag or a commit; None for the main branch.
      file: Name of the file.

    Raises:
      NotThere: The hub has no such repository, revision or file.
      UserError: The repository is gated, the hub cannot be reached or offline mode is on, or the download is broken.
    """
    import huggingface_hub

    with hub_errors(f"hf:{name}", f"{file}", revision), _quiet():
        path = Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
    _check_content(path, f"hf:{name}")
    return path


def image_set(name: str, config: str | None, revision: str | None) -> Path:
    """Returns the folder of a data set's parquet files, from the cache of huggingface_hub or downloaded.

    Args:
      name: "org/name" of a repository of data.
      config: Folder of one of its configurations; None for its only one.
      revision: A branch, a tag or a commit; None for the main branch.

    Raises:
      NotThere: The hub has no such repository, revision or configuration, or it has no parquet files there.
      UserError: As for `from_hub`.
    """
    import huggingface_hub

    pattern = f"{config}/*.parquet" if config else "*.parquet"
    with hub_errors(f"hf:{name}", pattern, revision), _quiet():
        options = {"repo_type": "dataset", "revision": revision, "allow_patterns": pattern}
        folder = Path(huggingface_hub.snapshot_download(name, **options))
    files = [path.relative_to(folder) for path in sorted(folder.rglob(pattern))]
    if not files:
        raise NotThere(f"hf:{name} has no files {pattern}; the hub has every set as parquet at @refs/convert/parquet")
    configs = sorted({path.parts[0] for path in files if len(path.parts) > 1 and not _SPLIT.match(path.parts[0])})
    if len(configs) > 1:
        raise UserError(
            f"hf:{name} has several configurations: {', '.join(configs)}; name one, as in hf:{name}/{configs[0]}"
        )
    return folder / config if config else folder


def commit(path: Path) -> str:
    """Returns the commit that a file of `from_hub` belongs to."""
    return next((part for part in reversed(path.parts) if re.fullmatch("[0-9a-f]{40}", part)), "")


def _check_content(path: Path, where: str) -> None:
    """Compares a file with its SHA-256, which is the name of a large file in the cache; removes a damaged one."""
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise UserError(
            f"{where}: {path.name} is damaged: its SHA-256 begins with {digest[:8]}, not {blob.name[:8]}; it was "
            "removed, and the same command downloads it again"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of huggingface_hub, which repeat errors or are about its configuration."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextlib.contextmanager
def hub_errors(where: str, file: str, revision: str | None = None) -> Iterator[None]:
    """Converts exceptions of huggingface_hub to one line that starts with `where`."""
    from huggingface_hub import constants, errors

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{where} is gated: accept its terms at {constants.ENDPOINT}/{where.removeprefix('hf:')}, and log in by "
            "hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotThere(
            f"{where}: the hub has no such repository, or it is private; hf auth login gives access to private ones"
        ) from None
    except errors.RevisionNotFoundError:
        raise NotThere(f"{where} has no revision '{revision}'") from None
    except errors.RemoteEntryNotFoundError:
        raise NotThere(f"{where} has no file {file}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.is_offline_mode():
            raise UserError(
                f"{where}: {file} is not in the cache ({constants.HF_HUB_CACHE}), and offline mode is on "
                "(HF_HUB_OFFLINE)"
            ) from None
        raise UserError(
            one_line(
                f"{where}: {file} is not in the cache, and the hub ({constants.ENDPOINT}) cannot be reached: "
                f"{_reason(error)}"
            )
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        advice = "; hf auth login renews the token" if status == 401 else ""
        raise UserError(f"{where}: the hub ({constants.ENDPOINT}) answers {status} for {file}{advice}") from None
    except errors.HFValidationError:
        raise UserError(f"{where}: must be hf:ORGANIZATION/NAME") from None
    except OSError as error:
        if error.errno is not None:
            raise UserError(one_line(f"{where}: {file} failed: {error}")) from None
        raise UserError(one_line(f"{where}: the transfer of {file} is broken; {_RESUMES} ({error})")) from None
    except Exception as error:  # httpx's errors, and whatever a proxy's answer causes
        raise UserError(
            one_line(f"{where}: the transfer of {file} is broken; {_RESUMES} ({type(error).__name__}: {error})")
        ) from None


def _reason(error: BaseException) -> str:
    """Returns the message of the exception that caused another one."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType] (one of them is there)
    return str(error) or type(error).__name__


# -- files by URL -------------------------------------------------------------------------------------------------


def from_url(url: str, sha256: str = "") -> Path:
    """Returns the path of a file, from the cache or downloaded.

    Args:
      url: https:// or http://, without a query.
      sha256: Beginning of the file's SHA-256, or "" if it is unknown.

    Raises:
      UserError: The server cannot be reached or has no such file, offline mode is on, or the content is wrong.
    """
    import filelock
    from huggingface_hub import constants

    name = url.rpartition("/")[2]
    folder = runtime.cache_folder() / "weights" / hashlib.sha256(url.encode()).hexdigest()[:12]
    path, partial = folder / name, folder / f"{name}.partial"
    if path.is_file():
        return path
    if constants.is_offline_mode():
        raise UserError(f"{url} is not in the cache ({folder}), and offline mode is on (HF_HUB_OFFLINE)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{partial}.lock"):
            if not path.is_file():
                _fetch(url, partial)
                _check_prefix(url, partial, sha256)
                partial.replace(path)
    except OSError as error:
        raise UserError(one_line(f"{url} cannot be stored in {folder}: {error.strerror or error}")) from None
    return path


def _fetch(url: str, partial: Path) -> None:
    """Downloads what `partial` lacks of a file."""
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            is_rest = response.status == 206
            expected = (there if is_rest else 0) + int(response.headers.get("Content-Length") or 0)
            with partial.open("ab" if is_rest else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the whole file is there, or it has changed
            partial.unlink()
            return _fetch(url, partial)
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(one_line(f"{url} cannot be reached: {reason}; {_RESUMES}")) from None
    except Exception as error:  # http.client's errors, and a server that speaks no HTTP
        if isinstance(error, OSError):
            raise
        raise UserError(one_line(f"{url}: the download is broken; {_RESUMES} ({type(error).__name__})")) from None
    size = os.path.getsize(partial)
    if expected and size != expected:
        raise UserError(f"{url}: the download is broken after {size:,} of {expected:,} bytes; {_RESUMES}")
    return None


def _check_prefix(url: str, path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        path.unlink()
        raise UserError(
            f"{url}: the content is wrong: its SHA-256 begins with {digest[: len(expected)]}, not {expected}; it was "
            "removed"
        )
