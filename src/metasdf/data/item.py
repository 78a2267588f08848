"""The file of one 3D shape, opened: what is wrong with it is an InputError. What it holds is said in `data.shape`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from metasdf.errors import InputError


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The safetensors file at `path`; also what is missing when it is asked for raises InputError."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> InputError:
    return InputError("The shape cannot be read", where=path, cause=f"truncated, or another kind of file ({error})",
                      fix="prepare the data set again (with --force: what is whole is taken over)")  # fmt: skip
