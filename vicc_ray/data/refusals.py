"""How many videos may be unreadable before a result is one of other videos than was meant."""

from __future__ import annotations

from collections.abc import Iterable

from vicc_ray.console import console
from vicc_ray.errors import UserError


def check_share(
    count: int, refused: Iterable[tuple[str, str]], videos: int, allowed: float, what: str, remedy: str
) -> None:
    """UserError, after the list, where `count` is more than the share `allowed` (`data.max_refused`) of `videos`.

    refused: (video, reason) of each, read only then. `what` says which they are and what happened to them ("videos of split
    query could not be read"), `remedy` what to do other than raising the limit.
    """
    if count <= allowed * videos:
        return
    for video, reason in refused:
        console.print(f"refused: {video}: {reason}")
    raise UserError(
        f"{count} of {videos} {what}, more than data.max_refused = {allowed:g} allows; {remedy}, or raise "
        "data.max_refused"
    )
