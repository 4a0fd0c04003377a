"""Whether a client that sent these Accept lines can be given a manifest of this type (RFC 9110, section 12.5.1).

A manifest has one type; there is nothing to choose from, only to refuse. The best registries differ: some send what
they have whatever was asked for, which breaks clients that cannot read it; some refuse everything that is not named,
which breaks whoever asks for `application/json` or looks with a browser. Here:

- no Accept: yes;
- a range matches (exact, `type/*` or `*/*`; the most specific one decides): yes, or with q = 0 no;
- nothing matches, but some manifest type is named: this client tells manifest types apart, so it is a no (404, and the
  answer says which type there is);
- nothing matches and no manifest type is named: this client does not negotiate, and gets what there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

MANIFEST_TYPES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.artifact.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
_ZERO = re.compile(r"0(\.0{0,3})?")


def is_acceptable(lines: Sequence[str], media_type: str) -> bool:
    """Whether a manifest of `media_type` answers a request with these Accept lines."""
    if not lines:
        return True
    ranges = _parse(",".join(lines))
    wanted = media_type.lower()
    for candidate in (wanted, wanted.partition("/")[0] + "/*", "*/*"):
        if candidate in ranges:
            return ranges[candidate]
    return ranges.keys().isdisjoint(MANIFEST_TYPES)


@lru_cache(maxsize=256)
def _parse(text: str) -> Mapping[str, bool]:
    """Each media range, and whether its weight is above zero."""
    ranges: dict[str, bool] = {}
    for element in text.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        if media_range:
            weights = [value for name, _, value in (part.partition("=") for part in parameters) if name.strip() == "q"]
            refused = bool(weights) and _ZERO.fullmatch(weights[0].strip()) is not None
            ranges[media_range] = ranges.get(media_range, False) or not refused
    return ranges
