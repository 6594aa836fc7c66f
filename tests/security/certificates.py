"""Certificates that live as long as a test."""

from __future__ import annotations

from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key


class Authority:
    """An issuer of certificates; `file` is its own, for those who shall trust it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._authority = trustme.CA()
        self.file = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def issue(self, host: str) -> tuple[bytes, bytes]:
        """A private key (PKCS #8, as Kafka wants it) and a certificate for this name or address and no other, PEM."""
        issued = self._authority.issue_cert(host)
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), chain
