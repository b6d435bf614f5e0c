"""Which source of a user's network made the results in a directory: told in the manifest, and compared."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastwi.models.source import source_of

KEY = "networks"
"""Where a manifest has them."""

_MOST_NAMED = 4


def sources_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """For each of `names` that is a user's own: its digest, and what went into that, by file and package."""
    found = {name: source_of(name) for name in sorted(set(names))}
    return {
        name: {"digest": source.digest, "made_of": source.parts()}
        for name, source in found.items()
        if source is not None
    }


def source_change(manifest: Path, names: Iterable[str]) -> str | None:
    """The first of `names` whose source is not the one that `manifest` tells of, with both digests; or None.

    None too where there is no manifest, or it does not say.
    """
    try:
        told = json.loads(manifest.read_text())[KEY]
        made = {name: (about["digest"], dict(about["made_of"])) for name, about in told.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    for name, now in sources_of(names).items():
        digest, parts = made.get(name, (now["digest"], {}))
        if digest != now["digest"]:
            was, made_of = f"{str(digest)[:12]} when they were made", _changed(parts, now["made_of"])
            return f"the source of {name} was {was}, and is {now['digest'][:12]} ({made_of})"
    return None


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    told = [f"{name} {before[name]}, now {now[name]}" if _is_package(name, before, now) else name for name in names]
    return "changed: " + ", ".join(told[:_MOST_NAMED]) + (", ..." if len(told) > _MOST_NAMED else "")


def _is_package(name: str, *places: Mapping[str, str]) -> bool:
    return name.startswith("package ") and all(name in place for place in places)
