"""From a path or URL to a registry: the one place that knows which keeper it takes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

from services.registry.cache import VersionCache
from services.registry.contract import Registry, RegistryError
from services.registry.files import FileRegistry
from services.registry.settings import CacheSettings

_LOCAL = ("file", "local")
# botocore waits a minute, five times over, before it says that a store is silent. What the
# operator configured for fsspec counts instead.
_PATIENCE = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 10,
            "retries": {"total_max_attempts": 1},
        }
    }
}


def is_url(where: str | Path) -> bool:
    """Whether this names a registry by a URL and not by a path."""
    return isinstance(where, str) and "://" in where


def place(text: str) -> str | Path:
    """A URL as it is, anything else as a path."""
    return text if is_url(text) else Path(text)


def local_folder(where: str | Path) -> Path | None:
    """The folder of a local registry; None if it is elsewhere."""
    if not is_url(where):
        return Path(where)
    scheme, _, rest = str(where).partition("://")
    return Path(rest) if scheme in _LOCAL else None


def open_registry(where: str | Path, cache: CacheSettings | None = None) -> Registry:
    """A folder, `file:///folder`, or `s3://bucket/prefix` and any other URL of fsspec.

    Nothing is asked of the place yet. Raises RegistryError if no registry can be named like
    this, or a package is missing.
    """
    folder = local_folder(where)
    if folder is not None:
        return FileRegistry(folder)
    return _remote(str(where), cache or CacheSettings())


def _remote(url: str, cache: CacheSettings) -> Registry:
    # fsspec is loaded only by who needs it.
    from fsspec.config import conf
    from fsspec.core import url_to_fs

    from services.registry.remote import RemoteRegistry

    shown = _without_credentials(url)
    if "::" in url:
        raise RegistryError(f"{shown} is a chain of file systems: name one")
    try:
        # Listings are not remembered: others publish. The instance is ours alone.
        scheme = url.partition("://")[0]
        options = {} if scheme in conf else _PATIENCE.get(scheme, {})
        fs, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as error:
        raise RegistryError(
            f"{shown} cannot be opened: {error}. For s3:// install requirements/s3.txt"
        ) from error
    except Exception as error:
        # Each file system has its own way to say that a URL is not usable.
        raise RegistryError(f"{shown} names no registry: {error}") from error
    if not root.strip("/"):
        raise RegistryError(f"{shown} names no place: give a bucket or folder after ://")
    place = cache.folder / hashlib.sha256(url.encode()).hexdigest()[:16]
    try:
        return RemoteRegistry(shown, fs, root, VersionCache(place, cache.limit_bytes))
    except OSError as error:
        raise RegistryError(
            f"the registry cache cannot be at {cache.folder} ({error.strerror}): give another "
            "folder with --registry-cache"
        ) from error


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
