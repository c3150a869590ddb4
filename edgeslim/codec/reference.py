"""A plain-Python ESZ decoder, written from FORMAT.md in its order and independent of the C code.

It is the second opinion: tests hold the C decoder against it, on sound containers and on malformed ones. It decodes
about 1 MB/s and says exactly what is wrong with a container, so it also serves to look into one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from edgeslim.codec import format as esz
from edgeslim.codec.format import SegmentInfo, hash32, malformed
from edgeslim.codec.reference_tables import BROKEN, Place, Reader, Table, read_set

__all__ = ["decode_reference"]

_STORED = 0
_OWN_TABLE = 255


_TablesAt = Callable[[int], tuple[Table, ...]]
"""The tables of an item, by its number within the block."""


def decode_reference(data: bytes | bytearray | memoryview) -> bytes:
    """The image that the container ``data`` holds.

    Raises:
        BadInputError: the container is malformed.
    """
    data = bytes(data)
    header = esz.parse_header(data)
    if len(data) != header.file_bytes:
        raise malformed("container", "byte 40", f"{len(data)} bytes", str(header.file_bytes))
    end = esz.HEADER_BYTES + header.index_bytes
    info = esz.parse_index(header, data[esz.HEADER_BYTES : end])
    image = bytearray()
    for number, segment in enumerate(info.segments):
        place = Place(source="container", offset=end, segment=number)
        if any(data[end : segment.coded_offset]):
            raise place.error("padding that is not zero", "zeros")
        end = segment.coded_offset + segment.coded_bytes
        image += _decode_payload(segment, data[segment.coded_offset : end], number)
    found = hash32(image)
    if found != header.image_hash:
        raise malformed("container", "byte 48", f"image hash {header.image_hash:#010x}", f"{found:#010x}", BROKEN)
    return bytes(image)


def _decode_payload(segment: SegmentInfo, payload: bytes, number: int) -> bytes:
    """Section 4: directory, padding, blocks."""
    place = Place(source="container", offset=segment.coded_offset, segment=number)
    if segment.compact:
        found = hash32(payload)
        if found != segment.hash:
            raise place.error(f"hash {segment.hash:#010x}", f"{found:#010x}")
        book, block_at = _read_book(segment, payload, 0, place)
        return _decode_block(segment, payload[block_at:], 0, (), book, place) if payload else b""
    directory = payload[: segment.directory_bytes]
    found = hash32(directory)
    if found != segment.hash:
        raise place.error(f"directory hash {segment.hash:#010x}", f"{found:#010x}")
    entries = tuple(struct.iter_unpack("<II", directory[: 8 * segment.block_count]))
    book, sets_at = _read_book(segment, directory, 8 * segment.block_count, place)
    sets = _read_sets(segment, directory, sets_at, len(book), place)
    if any(payload[segment.directory_bytes : segment.data_offset]):
        raise place.error("padding that is not zero", "zeros")
    data = payload[segment.data_offset :]
    sizes = [
        min(segment.block_bytes, segment.decoded_bytes - block * segment.block_bytes)
        for block in range(segment.block_count)
    ]
    _check_ends(segment, [end for end, _ in entries], sizes, len(data), place)
    image = bytearray()
    start = 0
    for block, (end, block_hash) in enumerate(entries):
        coded = data[start:end]
        at = Place(
            source="container",
            offset=segment.coded_offset + segment.data_offset + start,
            segment=number,
            block=block,
        )
        found = hash32(coded)
        if found != block_hash:
            raise at.error(f"block hash {block_hash:#010x}", f"{found:#010x}")
        image += _decode_block(segment, coded, block, sets, book, at)
        start = end
    return bytes(image)


def _check_ends(segment: SegmentInfo, ends: list[int], sizes: list[int], data_bytes: int, place: Place) -> None:
    start = 0
    for end, size in zip(ends, sizes, strict=True):
        coded = end - start
        if not (coded == size if segment.alphabet == "RAW" else 0 <= coded <= size + 2):
            raise place.error(f"a block of {coded} coded bytes", f"up to {size + 2}, RAW {size}")
        start = end
    if start != data_bytes:
        raise place.error(f"{data_bytes} bytes of data", f"{start}, where the last block ends")


def _read_book(segment: SegmentInfo, data: bytes, at: int, place: Place) -> tuple[tuple[bytes, ...], int]:
    """The codebook's values, none without a codebook, and where they end."""
    if not segment.has_codebook:
        return (), at
    count = data[at] + 1 if at < len(data) else 0
    end = at + 1 + count * segment.value_bytes
    if count == 0 or end > len(data) or segment.fill >= count:
        raise place.error(f"a codebook of {count} values, fill {segment.fill}", f"one within {len(data)} bytes")
    return tuple(data[k : k + segment.value_bytes] for k in range(at + 1, end, segment.value_bytes)), end


def _read_sets(
    segment: SegmentInfo, directory: bytes, at: int, book_count: int, place: Place
) -> tuple[tuple[Table, ...], ...]:
    sets = []
    if segment.alphabet != "RAW":
        if at == len(directory):
            raise place.error("a directory without set_count", "one")
        count = directory[at]
        at += 1
        if count > esz.MAX_SETS:
            raise place.error(f"{count} table sets", f"at most {esz.MAX_SETS}")
        for _ in range(count):
            tables, at = read_set(segment, directory, at, book_count, place)
            sets.append(tables)
    if at != len(directory):
        raise place.error(f"a directory of {len(directory)} bytes", str(at))
    return tuple(sets)


def _decode_block(
    segment: SegmentInfo,
    coded: bytes,
    block: int,
    sets: tuple[tuple[Table, ...], ...],
    book: tuple[bytes, ...],
    place: Place,
) -> bytes:
    """Section 5: STORED, planes, or coded items."""
    if segment.alphabet == "RAW":
        return coded
    size = min(segment.block_bytes, segment.decoded_bytes - block * segment.block_bytes)
    if not 2 <= len(coded) <= size + 2:
        raise place.error(f"a block of {len(coded)} coded bytes", f"2 to {size + 2}")
    if coded[0] == _STORED:
        return _stored(coded, size, place)
    start = block * segment.block_bytes // segment.value_bytes * (2 if segment.nibble else 1)
    if segment.alphabet != "PLANES":
        out = _decode_items(segment, coded, size // segment.value_bytes, start, sets, book, place)
        return b"".join(book[index] for index in out) if book else out
    if coded[:2] != b"\x01\x00":
        raise place.error(f"mode {coded[0]} and table {coded[1]} of planes", "1 and 0")
    count = size // segment.value_bytes
    planes = []
    for part in _split_streams(coded, 2, segment.value_bytes, place):
        if not 2 <= len(part) <= count + 2:
            raise place.error(f"a plane of {len(part)} coded bytes", f"2 to {count + 2}")
        stored = part[0] == _STORED
        planes.append(
            _stored(part, count, place) if stored else _decode_items(segment, part, count, 0, sets, book, place)
        )
    image = bytes(byte for value in zip(*planes, strict=True) for byte in value)
    return _rotate_back(image, segment.value_bytes) if segment.fill else image


def _stored(coded: bytes, size: int, place: Place) -> bytes:
    if coded[1] != 0 or len(coded) != size + 2:
        raise place.error(f"STORED with table {coded[1]}, {len(coded)} bytes", f"table 0, {size + 2}")
    return coded[2:]


def _rotate_back(image: bytes, width: int) -> bytes:
    """Each value rotated down by one bit."""
    out = bytearray()
    for at in range(0, len(image), width):
        value = int.from_bytes(image[at : at + width], "little")
        out += (value >> 1 | (value & 1) << 8 * width - 1).to_bytes(width, "little")
    return bytes(out)


def _decode_items(
    segment: SegmentInfo,
    coded: bytes,
    size: int,
    start: int,
    sets: tuple[tuple[Table, ...], ...],
    book: tuple[bytes, ...],
    place: Place,
) -> bytes:
    """Mode, table sets and the classes of rows, then the streams. ``start``: the first item within the segment."""
    mode, table, at = coded[0], coded[1], 2
    if mode not in ((1, 4, 8) if segment.alphabet in ("PLAIN", "PAIR", "PLANES") else (1, 4)):
        raise place.error(f"mode {mode}", "a number of streams that the alphabet has")
    row_items, rows = 0, [0]
    if table == _OWN_TABLE:
        tables, at = read_set(segment, coded, at, len(book), place)
        chosen: tuple[tuple[Table, ...], ...] = (tables,)
    else:
        chosen = sets[table : table + (esz.ROW_CLASSES if segment.row_items else 1)]
        if len(chosen) != (esz.ROW_CLASSES if segment.row_items else 1):
            raise place.error(f"table set {table} of {len(sets)}", "one that is there, or 255")
        if segment.row_items:
            row_items = segment.row_items
            items = 2 * size if segment.nibble else size
            rows, at = _read_map(coded, at, (start + items - 1) // row_items - start // row_items + 1, place)
    streams = _split_streams(coded, at, mode, place)

    def tables_at(item: int) -> tuple[Table, ...]:
        return chosen[rows[(start + item) // row_items - start // row_items]] if row_items else chosen[0]

    return _join_streams(segment, streams, size, tables_at, place)


def _read_map(coded: bytes, at: int, count: int, place: Place) -> tuple[list[int], int]:
    """The class of each of the block's rows, and where the map ends."""
    size = -(-count // 4)
    bits = int.from_bytes(coded[at : at + size], "little")
    if len(coded) < at + size or bits >> 2 * count:
        raise place.error(f"a map of {len(coded) - at} bytes", f"{size}, and zeros behind {count} rows")
    return [bits >> 2 * row & 3 for row in range(count)], at + size


def _join_streams(segment: SegmentInfo, streams: list[bytes], size: int, tables_at: _TablesAt, place: Place) -> bytes:
    """The block's bytes, or indices, from its streams: interleaved or in chunks."""
    mode = len(streams)
    items = 2 * size if segment.nibble else size
    if mode == 8:
        out = bytearray(size)
        for s, stream in enumerate(streams):
            out[s::8] = _decode_chunk(segment, stream, range(s, size, 8), tables_at, place)
        return bytes(out)
    chunk = (items + 8 * mode - 1) // (8 * mode) * 8
    elements = bytearray()
    for s, stream in enumerate(streams):
        places = range(min(s * chunk, items), min((s + 1) * chunk, items))
        elements += _decode_chunk(segment, stream, places, tables_at, place)
    if segment.nibble:
        return bytes(low | high << 4 for low, high in zip(elements[::2], elements[1::2], strict=True))
    return bytes(elements)


def _split_streams(coded: bytes, at: int, mode: int, place: Place) -> list[bytes]:
    start = at + 3 * (mode - 1)
    if len(coded) < start:
        raise place.error(f"{len(coded)} bytes", "room for the stream sizes")
    streams = []
    for s in range(mode - 1):
        end = start + int.from_bytes(coded[at + 3 * s : at + 3 * s + 3], "little")
        if end > len(coded):
            raise place.error(f"stream {s} up to byte {end} of the block", f"at most {len(coded)}")
        streams.append(coded[start:end])
        start = end
    streams.append(coded[start:])
    if not all(streams):
        raise place.error("a stream without bytes", "at least the sentinel's")
    return streams


def _decode_chunk(segment: SegmentInfo, stream: bytes, places: range, tables_at: _TablesAt, place: Place) -> bytearray:
    """Section 6: the items at ``places`` of the block, from one stream; for GAP and MASK8, an element a byte."""
    reader = Reader(stream, place)
    if segment.alphabet in ("PLAIN", "PLANES"):
        out = bytearray(reader.symbol(tables_at(item)[0]) for item in places)
    elif segment.alphabet == "PAIR":
        out = bytearray(reader.symbol(tables_at(0)[0]) | reader.symbol(tables_at(0)[0]) << 4 for _ in places)
    elif segment.alphabet == "GAP":
        out = _decode_gaps(reader, places, segment, tables_at, place)
    elif segment.alphabet == "JOINT":
        out = _decode_joint(reader, places, segment, tables_at, place)
    else:
        out = _decode_masks(reader, places, segment, tables_at, place)
    reader.check_end()
    return out


def _decode_gaps(reader: Reader, places: range, segment: SegmentInfo, tables_at: _TablesAt, place: Place) -> bytearray:
    length = len(places)
    out = bytearray([segment.fill]) * length
    p = 0
    while p < length:
        gaps, values = tables_at(places.start + p)
        gap = reader.symbol(gaps)
        p += gap
        if p > length:
            raise place.error(f"a gap up to element {p}", f"at most {length}")
        if gap == segment.cap:
            continue
        if p == length:
            break
        out[p] = reader.symbol(values)
        p += 1
    return out


def _decode_joint(reader: Reader, places: range, segment: SegmentInfo, tables_at: _TablesAt, place: Place) -> bytearray:
    length = len(places)
    out = bytearray([segment.fill]) * length
    p = 0
    while p < length:
        (table,) = tables_at(places.start + p)
        symbol = reader.symbol(table)
        pairs = segment.cap * table.values
        if symbol >= pairs:
            p += (symbol - pairs + 1) * segment.cap
            continue
        gap, value = divmod(symbol, table.values)
        if p + gap >= length:
            raise place.error(f"a value at element {p + gap}", f"below {length}")
        out[p + gap] = value + (value >= segment.fill)
        p += gap + 1
    return out


def _decode_masks(reader: Reader, places: range, segment: SegmentInfo, tables_at: _TablesAt, place: Place) -> bytearray:
    length = len(places)
    out = bytearray([segment.fill]) * length
    for group in range(0, length, 8):
        masks, values = tables_at(places.start + group)
        mask = reader.symbol(masks)
        if mask >> min(8, length - group):
            raise place.error(f"mask {mask:#04x}", f"{length - group} elements")
        for k in range(8):
            if mask >> k & 1:
                out[group + k] = reader.symbol(values)
    return out
