"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from metasdf.errors import MetaSDFError, UsageError


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step: a reader, or a crash at any moment, sees the old file or the new one. Folders are made.

    Raises UsageError if nothing can be written in the folder, MetaSDFError if the disk is full, or something else has the name.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("xb")
    except OSError as error:
        raise UsageError(f"cannot write {path.name}: {error.strerror}", where=path.parent,
                         cause="the folder is not writable, or a file is in its place",
                         fix="choose another output folder, or change its permissions") from error  # fmt: skip
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise MetaSDFError(f"{path.name} could not be written: {error.strerror}", where=path, cause="a full disk, or something else of that name",
                           fix="free some space or choose another output; what was there before is untouched") from error  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)
