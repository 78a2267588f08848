"""Errors that say what went wrong, where, why (most likely) and what to type next.

Every message a user can meet through bad input is one of these. The command line prints the four parts and leaves with `exit_code`;
a Python caller can catch `MetaSDFError` (all of ours) or `ValueError` (`InputError` and `UsageError` are both).
"""

from __future__ import annotations


class MetaSDFError(Exception):
    """Base of all errors raised on purpose. `what` is one sentence; `where`, `cause` and `fix` fill the other three parts."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", cause: str = "", fix: str = "") -> None:
        self.what, self.where, self.cause, self.fix = what, str(where), cause, fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        for name, text in (("where", self.where), ("likely cause", self.cause), ("what to do", self.fix)):
            if text:
                parts.append(f"  {name}: {text}")
        return "\n".join(parts)


class InputError(MetaSDFError, ValueError):
    """The data given cannot be used (corrupt file, NaN points, empty image): exit code 1."""


class UsageError(MetaSDFError, ValueError):
    """The request itself is wrong (unknown name, missing path, wrong shape of run): exit code 2."""

    exit_code = 2


class EmptySurfaceError(MetaSDFError):
    """A field has no zero level set where it was looked for: exit code 1."""


class CheckpointError(MetaSDFError):
    """A saved file is damaged, or belongs to something else: exit code 1."""


class TrainingError(MetaSDFError):
    """Training cannot go on (a loss that is not finite, no memory): exit code 1; the last good state is kept."""
