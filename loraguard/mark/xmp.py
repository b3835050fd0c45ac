"""IPTC's digital source type in a picture's XMP, put into the file without touching a pixel.

JPEG keeps XMP in an APP1 segment, PNG in an iTXt chunk (XMP Specification, part 3). What is there stays: a packet gets
one property more, and one that has it already is left as it is.
"""

from __future__ import annotations

import struct
import zlib
from xml.etree import ElementTree as ET

SOURCE_TYPES = {
    "generated": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    "edited": "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
}
"""IPTC's terms for what a network made of nothing but its weights and words, and for what it changed."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_PROPERTY = f"{{{_EXT}}}DigitalSourceType"
_JPEG_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_KEYWORD = b"XML:com.adobe.xmp\0"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EMPTY = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about=""/></rdf:RDF>'
    "</x:xmpmeta>"
)
_LONGEST = 65533 - len(_JPEG_HEAD)
_LONGEST_UNPACKED = 1 << 24


def with_source_type(file: bytes, kind: str) -> bytes:
    """A JPEG or PNG file with IPTC's digital source type in its XMP; of any other format, the file as it is.

    Args:
        file: its bytes.
        kind: a key of :data:`SOURCE_TYPES`.

    Raises:
        ValueError: for an XMP packet that cannot be read, or would not fit into a JPEG's segment.

    Example:
        >>> from io import BytesIO
        >>> from PIL import Image
        >>> Image.new("RGB", (8, 8)).save(file := BytesIO(), "PNG")
        >>> source_type(with_source_type(file.getvalue(), "edited")).rpartition("/")[2]
        'compositeWithTrainedAlgorithmicMedia'
    """
    found = _packet(file)
    if found is None or (packet := _with_property(found[2], SOURCE_TYPES[kind])) is None:
        return file
    start, end, _ = found
    if file.startswith(_PNG_SIGNATURE):
        body = b"iTXt" + _PNG_KEYWORD + bytes(4) + packet
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return file[:start] + chunk + file[end:]
    if len(packet) > _LONGEST:
        raise ValueError(f"The file's XMP packet of {len(packet)} bytes would not fit into a JPEG's segment any more.")
    segment = b"\xff\xe1" + struct.pack(">H", len(packet) + len(_JPEG_HEAD) + 2) + _JPEG_HEAD + packet
    return file[:start] + segment + file[end:]


def source_type(file: bytes) -> str | None:
    """The digital source type that a JPEG's or PNG's XMP names, or None."""
    found = _packet(file)
    if found is None or not found[2]:
        return None
    for one in _parsed(found[2]).iter(f"{{{_RDF}}}Description"):
        if named := one.get(_PROPERTY):
            return named
        if (element := one.find(_PROPERTY)) is not None:
            return element.text or element.get(f"{{{_RDF}}}resource")
    return None


def _parsed(packet: bytes) -> ET.Element:
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        raise ValueError("The file's XMP packet declares entities, which no XMP has.")
    try:
        return ET.fromstring(packet.strip(b"\0 \r\n\t"))
    except ET.ParseError as error:
        raise ValueError(f"The file's XMP packet is no XML: {error}.") from error


def _with_property(packet: bytes, value: str) -> bytes | None:
    """The packet with the property; None if it has one already."""
    for prefix, uri in (("rdf", _RDF), ("Iptc4xmpExt", _EXT), ("x", "adobe:ns:meta/")):
        ET.register_namespace(prefix, uri)
    root = _parsed(packet or _EMPTY.encode())
    described = list(root.iter(f"{{{_RDF}}}Description"))
    if not described:
        raise ValueError("The file's XMP packet has no rdf:Description.")
    if any(one.get(_PROPERTY) or one.find(_PROPERTY) is not None for one in described):
        return None
    described[0].set(_PROPERTY, value)
    inner = ET.tostring(root, encoding="unicode")
    begin = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{begin}{inner}<?xpacket end="w"?>'.encode()


def _packet(file: bytes) -> tuple[int, int, bytes] | None:
    """Where the chunk or segment with XMP is in a PNG or JPEG, and its packet; None for other formats.

    Where there is none, an empty span where one may be put.
    """
    if file.startswith(_PNG_SIGNATURE):
        return _in_png(file)
    return _in_jpeg(file) if file.startswith(b"\xff\xd8") else None


def _in_png(file: bytes) -> tuple[int, int, bytes]:
    at, after_header = 8, 33  # signature, then IHDR with its 13 bytes
    while at + 8 <= len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        if file[at + 4 : at + 8] == b"iTXt" and file[at + 8 :].startswith(_PNG_KEYWORD):
            return at, at + 12 + length, _international(file[at + 8 + len(_PNG_KEYWORD) : at + 8 + length])
        at += 12 + length
    return after_header, after_header, b""


def _international(text: bytes) -> bytes:
    """What an iTXt chunk says: flag and method of compression, language and translated keyword come before it."""
    compressed, said = text[:1] != b"\0", text[2:].split(b"\0", 2)[-1]
    try:
        return zlib.decompressobj().decompress(said, _LONGEST_UNPACKED) if compressed else said
    except zlib.error as error:
        raise ValueError(f"The file's XMP packet cannot be decompressed: {error}.") from error


def _in_jpeg(file: bytes) -> tuple[int, int, bytes]:
    at, place = 2, 2
    while at + 4 <= len(file) and file[at] == 0xFF and file[at + 1] not in (0xDA, 0xD9):
        if file[at + 1] == 0xFF:  # any number of these may fill the space before a marker
            at += 1
            continue
        marker, (length,) = file[at + 1], struct.unpack(">H", file[at + 2 : at + 4])
        if marker == 0xE1 and file[at + 4 :].startswith(_JPEG_HEAD):
            return at, at + 2 + length, file[at + 4 + len(_JPEG_HEAD) : at + 2 + length]
        at += 2 + length
        if marker in (0xE0, 0xE1):  # JFIF and Exif come first
            place = at
    return place, place, b""
