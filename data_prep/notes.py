"""What was done to the images of a set, and what was found in them: counted, for the card and for warnings."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from data_prep.decode import DecodedImage

Warn = Callable[[str], None]
"""Called with one line for each thing that a user should know of."""

_WARNINGS = {
    "cmyk": "of CMYK: ink became colour by a plain formula, not by a profile",
    "profile": "with a colour profile or gamma other than sRGB's: it is not applied, values are taken as they are",
    "leaked": "of the test split with the same pixels as a training image",
    "unchecked": "not checked for damage that Pillow passes over: simplejpeg cannot read them, or is not installed",
}


class Notes:
    """Counts over the images of both splits, each of which is `seen` once."""

    def __init__(self, background: str | None) -> None:
        self._background = background
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self._train: set[bytes] = set()
        self._lines: list[str] = []

    def seen(self, split: str, path: str, image: DecodedImage) -> None:
        """Count an image; those of "train" come first."""
        found = {
            "turned": image.turned,
            "flattened": image.flattened,
            "cmyk": image.cmyk,
            "profile": image.profile,
            "unchecked": image.unchecked,
        }
        digest = hashlib.blake2b(repr(image.pixels_HWC.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image.pixels_HWC).data)
        if split == "train":
            self._train.add(digest.digest())
        else:
            found["leaked"] = digest.digest() in self._train
        for kind, is_so in found.items():
            if is_so:
                self._count(kind, path)

    def add(self, line: str) -> None:
        """Warn of this too."""
        self._lines.append(line)

    def left_out(self, paths: Sequence[str]) -> None:
        """Warn of hidden files and folders, if there are any."""
        if paths:
            self.add(f"hidden files and folders left out: {len(paths):,} (such as {paths[0]})")

    def said(self) -> list[str]:
        """What was done to pixels, for the card's source."""
        texts = {
            "turned": "turned as EXIF says",
            "flattened": f"with transparency laid on {self._background}",
            "cmyk": "from CMYK by a plain formula",
        }
        return [f"{self._counts[kind]:,} {text}" for kind, text in texts.items() if kind in self._counts]

    def warnings(self) -> list[str]:
        """One line for each kind of thing that was found, with its number and the first of them."""
        lines = list(self._lines)
        for kind, text in _WARNINGS.items():
            if kind in self._counts:
                count = self._counts[kind]
                lines.append(f"{count:,} image{'s' if count > 1 else ''} {text} (such as {self._first[kind]})")
        return lines

    def _count(self, kind: str, path: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._first.setdefault(kind, path)
