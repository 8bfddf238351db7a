"""Files in object stores and on servers, read as they stand there: any address that fsspec knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.registry import known_implementations

from cloze.errors import ClozeError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::.*)?://")
# What a store says of a file, the first of these that it has: another one is another content.
_STATES = (
    "ETag",
    "etag",
    "blob_id",
    "content_hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


@dataclass(frozen=True, slots=True, order=True)
class RemoteFile:
    """A file at an address. `state`: what its store says of its content, such as an ETag; "" is nothing."""

    address: str
    size: int
    state: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return Path(self.name).suffix

    def __str__(self) -> str:
        """The address."""
        return self.address


File = Path | RemoteFile


def is_address(path: str) -> bool:
    """Whether a path is an address such as s3://bucket/file, and no path on this machine."""
    return _ADDRESS.match(path) is not None


def listed(address: str) -> list[RemoteFile]:
    """The files that an address means, in the order of their names: a file, a folder with all below, a glob.

    Errors: nothing there, no access, an unknown scheme, or one whose driver is not installed.
    """
    try:
        system, path = fsspec.url_to_fs(address)
        if system.isdir(path) or any(sign in path for sign in "*?["):
            names = system.find(path, detail=True) if system.isdir(path) else system.glob(path, detail=True)
            found = [(str(system.unstrip_protocol(name)), about) for name, about in names.items()]
        else:
            found = [(address, system.info(path))]
        files = [_file(name, about) for name, about in found if about["type"] == "file"]
    except ImportError as error:
        raise ClozeError(f"{address}: {_driver(address)} ({error})") from None
    except Exception as error:  # each driver has its own
        raise ClozeError(f"{address}: cannot be read, {_said(error)}") from None
    return sorted(files)


def _file(address: str, about: dict[str, Any]) -> RemoteFile:
    state = next((str(about[key]) for key in _STATES if about.get(key) is not None), "")
    return RemoteFile(address, int(about.get("size") or 0), state)


def _driver(address: str) -> str:
    scheme = address.partition(":")[0]
    hint = known_implementations.get(scheme, {}).get("err", "its driver is not installed")
    package = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
    return f"pip install {package}" if package and package != "fsspec" else hint


def opened(file: File) -> Any:
    """A file's bytes for reading, as a context: packed ones are not unpacked. Errors: OSError."""
    if isinstance(file, Path):
        return file.open("rb")
    try:
        return fsspec.open(file.address, "rb").open()
    except OSError:
        raise
    except Exception as error:
        raise OSError(_said(error)) from None


def unpacked(file: File, packed: str | None) -> pa.NativeFile:
    """A stream of a file's bytes. `packed`: "gzip", "zstd" or None. Errors: OSError."""
    return pa.input_stream(str(file) if isinstance(file, Path) else opened(file), compression=packed)


def size_of(file: File) -> int:
    """Bytes of a file as it is stored."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def state_of(file: File) -> tuple[str, int, object]:
    """Place, size and time of the last change (or what the store says instead)."""
    if isinstance(file, RemoteFile):
        return file.address, file.size, file.state
    stat = file.stat()
    return str(file.resolve()), stat.st_size, stat.st_mtime_ns


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
