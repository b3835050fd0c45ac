"""Signed metadata: what was signed is read and holds, a changed file does not, and nothing that was there is lost."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET

import c2pa
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loraguard.mark.certificate import NAME, make_test_certificate
from loraguard.mark.credentials import ASSERTION, Signer, read_anchors, read_credentials, sign_bytes
from loraguard.mark.xmp import SOURCE_TYPES, source_type, with_source_type

EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
ORIGIN = {"generator": {"class": "DemoEditor", "sha256": "0" * 64}, "mark": {"message": "c0de"}}
PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/any"/>'
    "</rdf:RDF></x:xmpmeta>"
)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(*make_test_certificate(tmp_path_factory.mktemp("certificate")))


def picture(kind: str, **options: object) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    image.save(file := BytesIO(), kind, **options)
    return file.getvalue()


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(file)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("made", ["generated", "edited"])
def test_what_is_signed_is_read_and_holds(kind: str, made: str, signer: Signer) -> None:
    before, media_type = picture(kind), f"image/{kind.lower()}"
    after = sign_bytes(before, media_type, signer, made, ORIGIN)
    found = read_credentials(after, media_type)
    assert (found.signed, found.valid, found.trusted) == (True, True, False)
    assert (found.signer, found.test) == (NAME, True)
    assert found.source_type == SOURCE_TYPES[made]
    assert found.origin == ORIGIN
    assert found.xmp_source_type == (None if kind == "WEBP" else SOURCE_TYPES[made])
    assert np.array_equal(pixels(before), pixels(after))


def test_who_is_trusted_is_for_the_reader_to_say(signer: Signer, tmp_path: Path) -> None:
    """By the authority's own certificate alone; not by that of another one, nor by the signer's."""
    signed = sign_bytes(picture("PNG"), "image/png", signer, "generated", ORIGIN)
    (tmp_path / "junk.pem").write_text("no certificate")
    other, _ = make_test_certificate(tmp_path)
    leaf, root = (
        "-----BEGIN" + one for one in Path(signer.certificate).read_text().split("-----BEGIN") if "CERTIFICATE" in one
    )
    for name, pem in (("leaf", leaf), ("root", root)):
        (tmp_path / f"{name}.pem").write_text(pem)
    files = {"root": tmp_path / "root.pem", "leaf": tmp_path / "leaf.pem", "other": other}
    found = {name: read_credentials(signed, "image/png", read_anchors(file)) for name, file in files.items()}
    assert {name: one.trusted for name, one in found.items()} == {"root": True, "leaf": False, "other": False}
    assert all(one.valid for one in found.values())
    with pytest.raises(ValueError, match=r"junk\.pem holds no certificates in PEM"):
        read_anchors(tmp_path / "junk.pem")


def test_another_reader_finds_the_actions_of_the_standard(signer: Signer) -> None:
    """c2pa's own reader, of the whole store."""
    signed = sign_bytes(picture("PNG"), "image/png", signer, "generated", ORIGIN)
    store = json.loads(c2pa.Reader("image/png", BytesIO(signed)).json())
    (manifest,) = store["manifests"].values()
    actions = next(one for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))["data"]["actions"]
    assert [one["action"] for one in actions] == ["c2pa.created"]
    assert actions[0]["digitalSourceType"].endswith("trainedAlgorithmicMedia")
    assert {one["label"] for one in manifest["assertions"]} >= {ASSERTION}


def test_a_changed_file_does_not_hold(signer: Signer) -> None:
    signed = bytearray(sign_bytes(picture("JPEG"), "image/jpeg", signer, "generated", ORIGIN))
    signed[-40] ^= 1
    found = read_credentials(bytes(signed), "image/jpeg")
    assert (found.signed, found.valid) == (True, False)
    assert "assertion.dataHash.mismatch" in found.problems


@pytest.mark.parametrize("made", ["generated", "edited"])
def test_earlier_credentials_stay(made: str, signer: Signer) -> None:
    once = sign_bytes(picture("PNG"), "image/png", signer, "generated", {"generator": {"class": "First"}})
    twice = sign_bytes(once, "image/png", signer, made, ORIGIN)
    found = read_credentials(twice, "image/png")
    assert (found.valid, found.earlier, found.origin) == (True, 1, ORIGIN)
    assert '"First"' in c2pa.Reader("image/png", BytesIO(twice)).json()


def test_other_metadata_stay(signer: Signer) -> None:
    text = PngInfo()
    text.add_text("Comment", "by hand")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    png = sign_bytes(picture("PNG", pnginfo=text), "image/png", signer, "generated", ORIGIN)
    jpeg = sign_bytes(picture("JPEG", exif=exif), "image/jpeg", signer, "generated", ORIGIN)
    assert Image.open(BytesIO(png)).text["Comment"] == "by hand"
    assert Image.open(BytesIO(jpeg)).getexif()[0x010E] == "a description"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_packet_of_xmp_gets_one_property_more(kind: str) -> None:
    """As Pillow, which knows nothing of ours, reads it."""
    if kind == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", PACKET)
        before = picture(kind, pnginfo=text)
    else:
        before = picture(kind, xmp=PACKET.encode())
    after = with_source_type(before, "generated")
    info = Image.open(BytesIO(after)).info
    packet = info["xmp"] if kind == "JPEG" else info["XML:com.adobe.xmp"]
    (described,) = ET.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert described.get("{http://purl.org/dc/elements/1.1/}format") == "image/any"
    named = described.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert named == source_type(after) == SOURCE_TYPES["generated"]
    assert with_source_type(after, "edited") == after  # what was said before stays
    assert np.array_equal(pixels(before), pixels(after))


def test_a_packet_in_any_chunk_is_the_only_one_afterwards() -> None:
    """Compressed, with a language, or empty; and one that names its source as a resource keeps it."""
    named = PACKET.replace("dc:format", f'xmlns:e="{EXT}" dc:format').replace(
        'any"/>', 'any"><e:DigitalSourceType rdf:resource="https://example.org/mine"/></rdf:Description>'
    )
    for packet, options in (
        (PACKET, {"zip": True}), (PACKET, {"lang": "x-default", "tkey": "XMP"}), ("", {}), (named, {"zip": True})
    ):  # fmt: skip
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", packet, **options)
        after = with_source_type(picture("PNG", pnginfo=text), "edited")
        assert after.count(b"XML:com.adobe.xmp") == 1
        assert source_type(after) == ("https://example.org/mine" if packet == named else SOURCE_TYPES["edited"])
        Image.open(BytesIO(after)).verify()
        assert ("image/any" in Image.open(BytesIO(after)).info["XML:com.adobe.xmp"]) == bool(packet)


def test_bytes_that_fill_the_space_before_a_segment_hide_no_packet() -> None:
    """A JPEG may have any number of 0xFF before a marker."""
    file = with_source_type(picture("JPEG"), "edited")
    at = file.index(b"\xff\xe1")
    filled = file[:at] + b"\xff\xff" + file[at:]
    assert source_type(filled) == SOURCE_TYPES["edited"]
    assert with_source_type(filled, "edited") == filled


def test_no_entity_of_a_stranger_is_expanded() -> None:
    packet = b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + PACKET.encode()
    for call in (source_type, lambda file: with_source_type(file, "edited")):
        with pytest.raises(ValueError, match="declares entities"):
            call(picture("JPEG", xmp=packet))


def test_no_server_is_asked_because_a_file_names_it(signer: Signer) -> None:
    """A photo that says where its credentials are is signed, and to read it tells where; nobody listens there."""
    elsewhere = PACKET.replace(
        "dc:format",
        'xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="http://127.0.0.1:1/a.c2pa" dc:format',
    )
    photo = picture("JPEG", xmp=elsewhere.encode())
    with pytest.raises(ValueError, match=r"must fetch .* http://127\.0\.0\.1:1/a\.c2pa"):
        read_credentials(photo, "image/jpeg")
    signed = sign_bytes(photo, "image/jpeg", signer, "generated", ORIGIN)
    assert read_credentials(signed, "image/jpeg").valid
    assert b"127.0.0.1:1" in signed


def test_a_file_without_credentials() -> None:
    found = read_credentials(picture("PNG"), "image/png")
    assert (found.signed, found.valid, found.source_type, found.xmp_source_type) == (False, False, None, None)


def test_what_cannot_be_signed(signer: Signer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generated, edited"):
        sign_bytes(picture("PNG"), "image/png", signer, "drawn", ORIGIN)
    with pytest.raises(ValueError, match="no XML"):
        with_source_type(picture("JPEG", xmp=b"<x"), "generated")
    with pytest.raises(ValueError, match="es256"):
        Signer(signer.certificate, signer.key, "rot13")
    with pytest.raises(FileNotFoundError, match="no key"):
        Signer(signer.certificate, tmp_path / "nowhere.pem")
    other = make_test_certificate(tmp_path)
    with pytest.raises(ValueError, match="cannot be signed"):
        sign_bytes(picture("PNG"), "image/png", Signer(signer.certificate, other[1]), "generated", ORIGIN)
