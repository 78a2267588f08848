"""Make the 100 MNIST test digits that ship with the package: python examples/make_mnist_slice.py MNIST_FOLDER_OR_ARCHIVE [OUT.png]

A 280 x 280 greyscale sheet, one class per row: the first ten digits of each class in the order of the official test set. Their row numbers
there are in the PNG's text chunk `test_indices`. The same source gives the same pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from metasdf.data import mnist


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the MNIST slice that ships with metasdf.")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path(mnist.__file__).parent / "mnist_slice" / "mnist_slice.png")
    arguments = parser.parse_args()
    digits = mnist.read_mnist(arguments.source)
    indices = np.concatenate([np.flatnonzero(digits.test_labels == label)[:10] for label in range(10)])
    sheet = digits.test_images[indices].reshape(10, 10, 28, 28).swapaxes(1, 2).reshape(280, 280)
    text = PngInfo()
    text.add_text("test_indices", " ".join(map(str, indices)))
    text.add_text("Copyright", f"{mnist.CREDIT}; {mnist.LICENCE}; a subset of the MNIST test set")
    Image.fromarray(sheet).save(arguments.out, optimize=True, pnginfo=text)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
