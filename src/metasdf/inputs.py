"""Many inputs, one after the other: outputs get names that overwrite nothing of the user's, and one input that fails costs no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from metasdf.errors import MetaSDFError


class Failure(NamedTuple):
    """An input that could not be reconstructed, and why."""

    path: Path
    error: MetaSDFError


def each(paths: Iterable[str | Path], one: Callable[[Path], Sequence[str]], *, say: Callable[[str], None]) -> list[Failure]:
    """`one(path)` for each distinct path, and the lines it returns to `say`; all failures are told at the end and returned (none: an empty list)."""
    chosen = list(dict.fromkeys(Path(path) for path in paths))
    failures: list[Failure] = []
    for path in chosen:
        try:
            lines = one(path)
        except MetaSDFError as error:
            failures.append(Failure(path, error))
            lines = (f"{path}: failed, {error.what}",)
        for line in lines:
            say(line)
    if failures:
        say(f"{len(failures)} of {len(chosen)} inputs failed:")
        for failure in failures:
            say(f"error: {failure.error}")
    return failures


def free_name(
    path: Path, out: Path, taken: set[str] | frozenset[str] = frozenset(), *, outputs: Sequence[str], form: str
) -> str:
    """What to call the outputs of `path`: its stem, or stem-ending, or those with a number, whichever is the first that overwrites nothing
    but an earlier reconstruction of the same file. outputs: their endings. form: the `format` of their summary, as `earlier_input` reads it."""
    ending = path.suffix.lstrip(".").lower()
    candidates = (path.stem, f"{path.stem}-{ending}", *(f"{path.stem}-{ending}-{k}" for k in range(2, 10_000)))

    def free(name: str) -> bool:
        if not any((out / (name + suffix)).exists() for suffix in outputs):
            return True
        earlier = earlier_input(out / f"{name}.json", form)
        return earlier is not None and earlier.resolve() == path.resolve()

    return next(name for name in candidates if name not in taken and free(name))


def earlier_input(summary: Path, form: str) -> Path | None:
    """Of what an earlier reconstruction was, if the file is a summary of ours."""
    try:
        earlier = json.loads(summary.read_text(encoding="utf-8"))
        return Path(earlier["input"]) if earlier["format"] == form else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors raised inside name the file."""
    try:
        yield
    except MetaSDFError as error:
        if str(path) not in error.where:
            error.where = f"{path}, {error.where}" if error.where else str(path)
        raise


def said_steps(steps: int, refine: int) -> str:
    return f"{steps} steps" + (f" and {refine} of Adam" if refine else "")
