"""Which other xends this one trusts: a certificate of its own, and a folder with those of the others.

There is no authority: as with SSH's keys, each side is shown the other's certificate once. A certificate says nothing
but that its owner has the key; names and dates in it are not looked at.
"""

from __future__ import annotations

import datetime
import os
import re
import socket
import ssl
import threading
from pathlib import Path

from pyxen import api
from pyxen.errors import Conflict, InvalidRequest, NotFound
from pyxen.image.files import write_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_VALID = datetime.timedelta(days=365 * 100)


class Peers:
    """The folder ``STATE/peers``: ``own.pem`` (key and certificate, for xend alone) and ``trusted/NAME.pem``."""

    def __init__(self, folder: Path) -> None:
        self._own = folder / "own.pem"
        self._trusted = folder / "trusted"
        self._making = threading.Lock()

    def own(self) -> str:
        """This xend's certificate, as PEM; made when it is first asked for. Blocking."""
        return _certificate(self._own_file().read_text())

    def list(self) -> api.PeerList:
        """Blocking."""
        own = self.own()
        peers = [api.Peer(path.stem, _fingerprint(path.read_text())) for path in sorted(self._trusted.glob("*.pem"))]
        return api.PeerList(certificate=own, fingerprint=_fingerprint(own), peers=peers)

    def add(self, name: str, certificate: str) -> api.Peer:
        """Trust a certificate under a name. Raises InvalidRequest, and Conflict if the name has another. Blocking."""
        if not _NAME.match(name):
            raise InvalidRequest(f"'{name}' can't be a peer's name", hint="Letters, digits, dots, - and _, at most 64.")
        pem = _certificate(certificate)
        fingerprint = _fingerprint(pem)
        path = self._trusted / f"{name}.pem"
        if path.exists() and _fingerprint(path.read_text()) != fingerprint:
            raise Conflict(f"'{name}' is trusted by another certificate", hint=f"Forget it first: xm peer rm {name}")
        write_file(path, [pem.encode()], mode=0o600)
        return api.Peer(name, fingerprint)

    def remove(self, name: str) -> None:
        """Trust it no more. Raises NotFound. Blocking."""
        if not _NAME.match(name) or not (path := self._trusted / f"{name}.pem").exists():
            raise NotFound(f"there is no peer '{name}'", hint="See what there is: xm peer list")
        path.unlink()

    def context(self, *, server: bool) -> ssl.SSLContext:
        """TLS 1.3 with our certificate, for others that have one of those trusted now. Blocking.

        Raises Conflict if nobody is trusted.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._own_file())
        pems = [path.read_text() for path in self._trusted.glob("*.pem")]
        if not pems and not server:
            raise Conflict(
                "no other xend is trusted here",
                hint="On the other host: xm peer show > b.pem; here: xm peer add b b.pem; and the other way round.",
            )
        if pems:
            context.load_verify_locations(cadata="\n".join(pems))
        return context

    def _own_file(self) -> Path:
        with self._making:
            if not self._own.exists():
                write_file(self._own, [_make().encode()], mode=0o600)
        return self._own


def _certificate(text: str) -> str:
    """The first certificate in a text. Raises InvalidRequest."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = text.find(begin)
    stop = text.find(end, start)
    if start < 0 or stop < 0:
        raise InvalidRequest("that is no certificate", hint="It is what xm peer show prints on the other host.")
    pem = text[start : stop + len(end)] + "\n"
    try:
        ssl.create_default_context(cadata=pem)
        ssl.PEM_cert_to_DER_cert(pem)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidRequest("that certificate is damaged", hint="Copy the whole of it again.") from error
    return pem


def _fingerprint(pem: str) -> str:
    """SHA-256 over the certificate, in colon-separated hexadecimal."""
    import hashlib

    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(_certificate(pem))).hexdigest()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def _make() -> str:
    """A new key with a certificate that it has signed itself, as PEM."""
    # Half a second's import, for something that is done once.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"xend on {socket.gethostname()}"[:64])])
    # Clocks of hosts differ, and nobody looks at the date.
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=365)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(os.urandom(16), "big") >> 1)
        .not_valid_before(start)
        .not_valid_after(start + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return (private + certificate.public_bytes(pem)).decode()
