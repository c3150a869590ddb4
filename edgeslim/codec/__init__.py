"""The ESZ container: weights coded by Huffman codes over alphabets that suit them. FORMAT.md has every byte.

``encode_container`` and ``write_container`` write, ``decode_container`` and ``decode_file`` read with the C coder, and
``decode_reference`` reads in plain Python, written from the specification alone.
"""

from edgeslim.codec.decode import decode_container, decode_file, read_index
from edgeslim.codec.encode import Segment, encode_container, write_container
from edgeslim.codec.format import ContainerInfo, SegmentInfo
from edgeslim.codec.reference import decode_reference

__all__ = [
    "ContainerInfo",
    "Segment",
    "SegmentInfo",
    "decode_container",
    "decode_file",
    "decode_reference",
    "encode_container",
    "read_index",
    "write_container",
]
