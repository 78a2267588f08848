"""Where a number comes from: commit and hardware, written into every prior and result."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def commit() -> str:
    """The git commit of the running source tree, with "+" if it was edited since; "unknown" for an installed package."""
    try:
        here = Path(__file__).parent
        # An installed package may lie inside somebody else's repository: only a tracked file speaks for ours.
        questions = ("ls-files --error-unmatch provenance.py", "rev-parse --short=12 HEAD", "status --porcelain --untracked-files=no .")
        _, revision, edited = (
            subprocess.run(["git", *words.split()], cwd=here, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for words in questions
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + ("+" if edited else "")


def hardware(device: torch.device) -> str:
    """The processor that computed, with its cores and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
