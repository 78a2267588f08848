"""For all tests: the shapes written in annotations are executed, torch keeps to one thread, data sets are found or the test is skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

# The hook acts on modules imported from here on. tests/test_fields.py checks that a wrong shape is refused.
assert "metasdf.fields" not in sys.modules, "metasdf was imported before the tests could watch its shapes"
jaxtyping.install_import_hook(["metasdf.fields", "metasdf.heads"], "beartype.beartype")
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def unwatched() -> Iterator[None]:
    """Annotations are mere text, as outside the tests: for tests of our own messages about wrong arguments."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder of the four official MNIST files, gzipped; tests that need it are skipped where it is absent."""
    for base in (REPOSITORY, REPOSITORY.parent):
        folder = base / "shared" / "data" / "mnist"
        if (folder / "t10k-images-idx3-ubyte.gz").is_file():
            return folder
    pytest.skip("the MNIST files are not here: shared/data/mnist is missing inside or beside the repository")
