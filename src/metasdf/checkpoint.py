"""One file per saved state: safetensors with JSON in its header. Written whole or not at all, and checked when read.

Digests of the tensors and of the state stand in the header, so a damaged file is told from a good one; nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metasdf.errors import CheckpointError
from metasdf.files import write_whole

State = dict[str, Any]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def plain(value: Any) -> Any:
    """`value` for strict JSON, which has no word for NaN and infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: object) -> None:
    write_whole(path, (json.dumps(plain(value), indent=2, sort_keys=False, allow_nan=False) + "\n").encode())


def save_state(path: Path, tensors: Mapping[str, Tensor], state: State, *, kind: str) -> None:
    """Write tensors and JSON state as one file of the given kind ("prior", "checkpoint")."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    header = {"format": f"metasdf-{kind}-1", "state": text, "sha256": digest(tensors), "state_sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_whole(path, save(tensors, metadata=header))


def load_state(path: Path, *, kind: str) -> tuple[dict[str, Tensor], State]:
    """Read what `save_state` wrote. Raises CheckpointError where the file is missing, damaged, or of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {kind} file", where=path, fix="check the path") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the {kind} file cannot be read ({error})", where=path, cause="it is cut off, damaged, or not a safetensors file",
                              fix="copy it again from its source, or train again") from error  # fmt: skip
    if header.get("format") != f"metasdf-{kind}-1":
        raise CheckpointError(f"this is no metasdf {kind} of version 1, it says {header.get('format', 'nothing')!r}", where=path,
                              cause="a file of another program, kind or version", fix=f"pass a {kind} written by this version")  # fmt: skip
    text_sha = hashlib.sha256(header.get("state", "").encode(errors="surrogatepass")).hexdigest()
    if header.get("sha256") != digest(tensors) or header.get("state_sha256", text_sha) != text_sha:  # the first files had no state_sha256
        raise CheckpointError(f"the content of the {kind} does not match its checksum", where=path, cause="the file was damaged after it was written",
                              fix="copy it again from its source, or train again")  # fmt: skip
    try:
        state = json.loads(header["state"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the description inside the {kind} is damaged", where=path, fix="copy it again from its source") from error
    return tensors, state
