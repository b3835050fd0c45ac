"""Signed metadata (C2PA Content Credentials, c2pa.org): where an image comes from, by `c2pa-python`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from .certificate import NAME
from .xmp import SOURCE_TYPES, source_type, with_source_type

FORMATS = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".tif": "image/tiff",
    ".tiff": "image/tiff", ".avif": "image/avif", ".heic": "image/heic", ".gif": "image/gif",
}  # fmt: skip
"""Media types that are signed, by the ending of a file's name."""
_BY_CONTENT = {
    "MPO": "image/jpeg", **{kind: f"image/{kind.lower()}" for kind in ("AVIF", "GIF", "JPEG", "PNG", "TIFF", "WEBP")},
}  # fmt: skip
ASSERTION = "org.loraguard.origin"
"""The label under which generator, patch and mark are named."""
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")


@dataclass(frozen=True)
class Signer:
    """Who signs.

    Args:
        certificate: a PEM file, the signer's certificate first and then those of who vouches for it.
        key: a PEM file with the private key (PKCS#8).
        algorithm: one of :data:`ALGORITHMS`, which has to fit the key.
        time_stamp: the address of a time-stamp authority (RFC 3161), which is called for each signature; None for none.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for another algorithm.
    """

    certificate: str | Path
    key: str | Path
    algorithm: str = "es256"
    time_stamp: str | None = None

    def __post_init__(self) -> None:
        for what, path in (("certificate", self.certificate), ("key", self.key)):
            if not Path(path).is_file():
                raise FileNotFoundError(f"There is no {what} {path}.")
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm={self.algorithm!r} must be one of {', '.join(ALGORITHMS)}.")


@dataclass(frozen=True)
class Credentials:
    """What is signed in an image file, and whether it holds.

    Attributes:
        signed: whether there is any.
        valid: whether signature and hashes hold; who signed need not be trusted.
        trusted: whether the signer's certificate leads to one of those that the caller trusts.
        signer: who signed, as the certificate says.
        test: whether it is a test certificate of loraguard.
        source_type: IPTC's digital source type in an action of the credentials; None for none.
        xmp_source_type: the one in the file's XMP, which is not signed by itself.
        origin: what is said of generator, patch and mark, if loraguard signed.
        earlier: how many earlier credentials they hold.
        problems: codes of the checks that failed, as C2PA names them.
    """

    signed: bool
    valid: bool = False
    trusted: bool = False
    signer: str | None = None
    test: bool = False
    source_type: str | None = None
    xmp_source_type: str | None = None
    origin: dict[str, Any] | None = None
    earlier: int = 0
    problems: list[str] = field(default_factory=list)


def type_of_image(file: BinaryIO, name: str) -> str | None:
    """What an image file is: by its content, or by its name where Pillow does not know it, as of HEIC; None for others.

    Example:
        >>> from PIL import Image
        >>> Image.new("L", (1, 1)).save(file := BytesIO(), "GIF")
        >>> type_of_image(file, "a.png"), type_of_image(BytesIO(), "a.heic")
        ('image/gif', 'image/heic')
    """
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return _BY_CONTENT.get(str(picture.format))
    except (OSError, ValueError, Image.DecompressionBombError):
        return FORMATS.get(Path(name).suffix.lower())


def check_signer(signer: Signer) -> None:
    """Sign a picture of one pixel, to know before any work whether certificate, key and time-stamp service will do.

    Raises:
        ImportError: where c2pa-python is not installed.
        ValueError: for what c2pa refuses: a certificate that has expired or is of another key, for instance.
    """
    from PIL import Image

    Image.new("L", (1, 1)).save(file := BytesIO(), "PNG")
    try:
        sign_bytes(file.getvalue(), "image/png", replace(signer, time_stamp=None), "generated", {})
    except ValueError as error:
        raise ValueError(
            f"{signer.certificate} and {signer.key} do not sign by {signer.algorithm}: {error.__cause__!s:.200}. A "
            "certificate goes with its own key, both in PEM, the key as PKCS#8 without a password, and has to hold "
            "today; algorithm (--algorithm) has to fit the key."
        ) from error
    if signer.time_stamp is None:
        return
    try:
        sign_bytes(file.getvalue(), "image/png", signer, "generated", {})
    except ValueError as error:
        raise ValueError(
            f"{signer.time_stamp} gives no time stamp: {error.__cause__!s:.200}. Give the http address of a service by "
            "RFC 3161 (--time-stamp), or none."
        ) from error


def has_credentials(file: bytes) -> bool:
    """Whether an image file carries credentials, of anybody, that hold or not, or says where it has some.

    Raises:
        ImportError: where c2pa-python is not installed.
        ValueError: where what is there cannot be read.
    """
    c2pa = _c2pa()
    try:
        return (known := type_of_image(BytesIO(file), "")) is not None and _carries(c2pa, known, file)
    except c2pa.C2paError as error:
        raise ValueError(f"The file's credentials cannot be read: {error!s:.400}") from error


def _carries(c2pa: Any, media_type: str, file: bytes) -> bool:
    try:
        return c2pa.Reader.try_create(media_type, BytesIO(file), context=_offline(c2pa)) is not None
    except c2pa.C2paError as error:
        if "must fetch remote" in str(error):  # they are elsewhere, where nobody is asked
            return True
        raise


def sign_bytes(
    file: bytes, media_type: str, signer: Signer, kind: str, origin: dict[str, Any], parent: bytes | None = None
) -> bytes:
    """An image file with its origin signed into it; pixels and whatever else it holds stay.

    Credentials that it has already become those of its parent; XMP gets the digital source type beside them.

    Args:
        file: its bytes.
        media_type: such as "image/png".
        signer: who signs.
        kind: "generated" for what a network made (`c2pa.created`), "edited" for what it changed (`c2pa.edited`).
        origin: what is said of generator, patch and mark, as JSON takes it.
        parent: bytes of the photo that was edited; by default the file itself is named as what was opened.

    Raises:
        ImportError: where c2pa-python is not installed.
        ValueError: for another kind, an XMP packet that cannot be read, or what c2pa refuses, such as a certificate
            that does not go with the key.
    """
    c2pa = _c2pa()
    if kind not in SOURCE_TYPES:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(SOURCE_TYPES)}.")
    described = with_source_type(file, kind)
    info = c2pa.C2paSignerInfo(
        signer.algorithm, Path(signer.certificate).read_bytes(), Path(signer.key).read_bytes(), signer.time_stamp
    )
    signed = BytesIO()
    try:
        opened = kind == "edited" or parent is not None or _carries(c2pa, media_type, file)
        builder = c2pa.Builder(_manifest(kind, origin, opened), context=_offline(c2pa))
        if opened:
            known = media_type if parent is None else type_of_image(BytesIO(parent), "") or media_type
            builder.add_ingredient({"relationship": "parentOf", "label": "parent"}, known, BytesIO(parent or file))
        builder.sign(c2pa.Signer.from_info(info), media_type, BytesIO(described), signed)
    except c2pa.C2paError as error:
        raise ValueError(f"The file cannot be signed: {error!s:.400}") from error
    return signed.getvalue()


def _manifest(kind: str, origin: dict[str, Any], opened: bool) -> dict[str, Any]:
    from loraguard import __version__

    agent = {"name": "loraguard", "version": __version__}
    done = {"softwareAgent": agent, "digitalSourceType": SOURCE_TYPES[kind]}
    actions: list[dict[str, Any]] = [{"action": "c2pa.edited" if opened else "c2pa.created", **done}]
    if opened:
        actions.insert(0, {"action": "c2pa.opened", "parameters": {"ingredientIds": ["parent"]}})
    return {
        "claim_generator_info": [agent],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": ASSERTION, "data": origin},
        ],
    }


def read_anchors(file: str | Path) -> str:
    """Certificates of authorities that are trusted, in PEM, such as those of C2PA's trust list.

    Raises:
        FileNotFoundError, OSError: for a file that is not there or cannot be read.
        ImportError: where cryptography is not installed.
        ValueError: for a file without certificates.
    """
    try:
        from cryptography.x509 import load_pem_x509_certificates
    except ImportError as error:
        raise ImportError("Certificates are read by cryptography: pip install 'loraguard[c2pa]'.") from error
    pem = Path(file).expanduser().read_bytes()
    try:
        load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ValueError(f"{file} holds no certificates in PEM: {error!s:.200}.") from error
    return pem.decode("ascii", "replace")


def read_credentials(file: bytes, media_type: str, anchors: str | None = None) -> Credentials:
    """What is signed in an image file, by anybody, and whether it holds.

    No server is asked for credentials that a file has elsewhere.

    Args:
        file: its bytes.
        media_type: such as "image/png".
        anchors: certificates of authorities that are trusted, as :func:`read_anchors` gives them; None trusts nobody.

    Raises:
        ImportError: where c2pa-python is not installed.
        ValueError: where what is there cannot be read, or is elsewhere.
    """
    c2pa = _c2pa()
    xmp = source_type(file)
    try:
        reader = c2pa.Reader.try_create(media_type, BytesIO(file), context=_offline(c2pa, anchors))
        if reader is None:
            return Credentials(False, xmp_source_type=xmp)
        manifest, state = reader.get_active_manifest() or {}, reader.get_validation_state()
        results, store = reader.get_validation_results() or {}, reader.json()
    except c2pa.C2paError as error:
        raise ValueError(f"The file's credentials cannot be read: {error!s:.400}") from error
    signature = manifest.get("signature_info") or {}
    who = signature.get("common_name") or signature.get("issuer")
    failed = [one.get("code") for one in (results.get("activeManifest") or {}).get("failure", [])]
    said = [(one.get("label", ""), one.get("data")) for one in manifest.get("assertions", [])]
    said = [(label, data) for label, data in said if isinstance(data, dict)]
    actions = [one for label, data in said if label.startswith("c2pa.actions") for one in data.get("actions", [])]
    types = [action["digitalSourceType"] for action in actions if "digitalSourceType" in action]
    origins = [data for label, data in said if label == ASSERTION]
    return Credentials(
        True, state in ("Valid", "Trusted"), state == "Trusted", who, who == NAME, types[-1] if types else None, xmp,
        origins[0] if origins else None, _count(store) - 1, failed,
    )  # fmt: skip


def _count(store: str) -> int:
    import json

    return len(json.loads(store).get("manifests", {}))


def _offline(c2pa: Any, anchors: str | None = None) -> Any:
    """Settings by which no server is asked for credentials because a stranger's file names it, and who is trusted."""
    trust = {} if anchors is None else {"trust": {"user_anchors": anchors}}
    return c2pa.Context(c2pa.Settings.from_dict({"verify": {"remote_manifest_fetch": False}, **trust}))


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise ImportError("Signed metadata need c2pa-python: pip install 'loraguard[c2pa]'.") from error
    return c2pa
