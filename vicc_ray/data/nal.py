"""The units of an H.264 or HEVC packet (ITU-T H.264 and H.265, 7.3.1), as far as seeking and references need them."""

from __future__ import annotations

from collections.abc import Iterator

# Coded slices of a picture after which nothing refers to what came before it.
_IDR = {"h264": {5}, "hevc": {19, 20}}
CODECS = frozenset(_IDR)


def length_bytes(codec: str, header: bytes) -> int:
    """Of how many bytes the length before each unit is (ISO 14496-15), from the stream's header; 0: start codes instead."""
    place = 4 if codec == "h264" else 21
    if len(header) <= place or header[0] != 1:
        return 0
    return (header[place] & 3) + 1


def units(data: bytes, length: int) -> Iterator[int]:
    """Where each unit of a packet begins, behind its length or its start code."""
    place = 0
    while place < len(data):
        if length:
            unit = place + length
            following = unit + int.from_bytes(data[place:unit], "big")
        else:
            code = data.find(b"\0\0\1", place)
            if code < 0:
                return
            unit = following = code + 3
        if unit < len(data):
            yield unit
        place = following


def is_reference(data: bytes, length: int) -> bool:
    """Whether an H.264 packet's first slice has nal_ref_idc above 0: others may refer to it."""
    for unit in units(data, length):
        if data[unit] & 31 in (1, 2, 5):
            return bool(data[unit] >> 5 & 3)
    return False


def starts_afresh(codec: str, data: bytes, length: int) -> bool:
    """Whether a packet holds an IDR picture: a decoder that begins with it lacks nothing."""
    kinds = ((data[unit] & 31 if codec == "h264" else data[unit] >> 1 & 63) for unit in units(data, length))
    return any(kind in _IDR[codec] for kind in kinds)
