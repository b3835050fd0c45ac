"""A certificate for trying signatures out, made on the spot; nobody trusts it, and its name says so."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

NAME = "loraguard TEST certificate, not trusted by anybody"
"""The common name of who signs with it."""


def make_test_certificate(folder: str | Path) -> tuple[Path, Path]:
    """Write a chain of certificates and a private key (ES256) into a folder, good for a day.

    They are `TEST-certificate.pem` and `TEST-key.pem`; who signs is :data:`NAME`, by an authority that is made for this
    and whose key is thrown away.

    Returns:
        Both paths.

    Raises:
        ImportError: where cryptography is not installed.
        OSError: if they cannot be written.

    Example:
        >>> import tempfile
        >>> [path.name for path in make_test_certificate(tempfile.mkdtemp())]
        ['TEST-certificate.pem', 'TEST-key.pem']
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise ImportError("A test certificate needs cryptography: pip install 'loraguard[c2pa]'.") from error
    from loraguard.files import whole_files, writable_folder

    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("loraguard TEST authority", authority.public_key(), "loraguard TEST authority", authority, True)
    leaf = _certificate(NAME, own.public_key(), "loraguard TEST authority", authority, False)
    pem = serialization.Encoding.PEM
    folder = writable_folder(folder)
    with whole_files(folder) as draft:
        (draft / "TEST-certificate.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
        key = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (draft / "TEST-key.pem").write_bytes(key)
    (folder / "TEST-key.pem").chmod(0o600)
    return folder / "TEST-certificate.pem", folder / "TEST-key.pem"


def _certificate(name: str, key: Any, issuer: str, issuer_key: Any, authority: bool) -> Any:
    """With what C2PA asks of one (specification 2.2, 14.5): key usage, purpose, and identifiers of both keys."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(text: str) -> x509.Name:
        organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "loraguard TEST")
        return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.timezone.utc)
    usage = {
        "digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority,
        "content_commitment": False, "key_encipherment": False, "data_encipherment": False, "key_agreement": False,
        "encipher_only": False, "decipher_only": False,
    }  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
