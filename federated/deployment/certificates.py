"""The exchange's certificate authority, and the TLS contexts of server and nodes.

A node's certificate is over the key it authenticates with to Flower; the proof that the node has
it stands in its enrolment. Keys are on P-256, TLS is 1.3 alone. Certificates of another authority
are as good: `bring` takes those of the exchange, `adopt` a node's, which it asked for by `request`.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.errors import ConfigurationError
from lab.files import write_whole

#: Days a certificate is good for: the authority's, a server's or node's.
AUTHORITY_DAYS, LEAF_DAYS = 3650, 397
CA, CA_KEY, SERVER, SERVER_KEY = "ca.pem", "ca.key", "server.pem", "server.key"


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on P-256, which Flower and TLS both take."""
    return ec.generate_private_key(ec.SECP256R1())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """A private key in a file of mode 0600."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(path, pem, 0o600)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key that others can't read. Raises :class:`ConfigurationError`."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path}: others can use it; it must have mode 0600")
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise ConfigurationError(f"{path}: is no private key in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path}: must be a key on a NIST curve")
    return key


def openssh_line(key: ec.EllipticCurvePrivateKey) -> str:
    """The public key as one OpenSSH line, as it stands in an enrolment."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def pem(openssh: str) -> bytes:
    """A public key of an enrolment as Flower names its nodes by."""
    public = load_ssh_public_key(openssh.encode())
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def make_authority(folder: Path, name: str, hosts: tuple[str, ...]) -> None:
    """A new authority in an exchange's folder, and the certificate of its server for these hosts."""
    key, server = new_key(), new_key()
    subject = _name(f"{name} authority")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    ca = (
        _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    leaf = _leaf(ca, key, name, server.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, names)
    write_key(folder / CA_KEY, key)
    write_key(folder / SERVER_KEY, server)
    write_whole(folder / CA, ca.public_bytes(Encoding.PEM))
    write_whole(folder / SERVER, leaf.public_bytes(Encoding.PEM))


def admit(folder: Path, name: str, openssh: str, days: float = LEAF_DAYS) -> str:
    """A node's certificate over its own key, PEM."""
    key, ca = read_key(folder / CA_KEY), read_certificate((folder / CA).read_bytes())
    public = load_ssh_public_key(openssh.encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    leaf = _leaf(ca, key, name, public, ExtendedKeyUsageOID.CLIENT_AUTH, None, days)
    return leaf.public_bytes(Encoding.PEM).decode()


def request(path: Path, key: ec.EllipticCurvePrivateKey, name: str) -> None:
    """A request for a certificate over a node's key, PKCS 10 in PEM, for an authority elsewhere."""
    csr = x509.CertificateSigningRequestBuilder(_name(name)).sign(key, hashes.SHA256())
    write_whole(path, csr.public_bytes(Encoding.PEM))


def adopt(folder: Path, openssh: str, certificate_file: Path) -> str:
    """A node's certificate that was brought along, PEM, if the exchange's authority issued it.

    Raises :class:`ConfigurationError`.
    """
    try:
        certificate, ca = (
            read_certificate(path.read_bytes()) for path in (certificate_file, folder / CA)
        )
    except OSError as error:
        raise ConfigurationError(f"{certificate_file}: cannot be read: {error.strerror}") from None
    now = datetime.datetime.now(datetime.UTC)
    key = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if key != pem(openssh):
        raise ConfigurationError("the certificate is for another key than the enrolment's")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ConfigurationError(
            f"the certificate is good from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, which is not today"
        )
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigurationError(
            f"the certificate was not issued by the exchange's authority, {folder / CA}"
        ) from None
    return certificate.public_bytes(Encoding.PEM).decode()


def bring(folder: Path, certificate: Path, key: Path, authority: Path) -> None:
    """The certificate and key of an exchange's server, and the authority that issues those of nodes,
    PEM, as they were brought along and `server_context` took them."""
    for source, name, mode in ((certificate, SERVER, 0o644), (key, SERVER_KEY, 0o600)):
        write_whole(folder / name, source.read_bytes(), mode)
    write_whole(folder / CA, authority.read_bytes())


def read_certificate(data: bytes) -> x509.Certificate:
    """Raises :class:`ConfigurationError`."""
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ConfigurationError("a certificate is not readable PEM") from None


def server_side(folder: Path) -> ssl.SSLContext:
    """TLS of the public listener: whoever has no certificate of the authority does not come in."""
    return server_context(folder / SERVER, folder / SERVER_KEY, folder / CA)


def server_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """TLS of a server by files in PEM. Raises :class:`ConfigurationError` where they do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{certificate}, {key}, {authority}: TLS cannot be set up: {error.strerror or error}"
        ) from None
    return context


def client_side(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS of a node: it trusts this authority alone, and shows its own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{certificate}: TLS cannot be set up: {error.strerror or error}"
        ) from None
    return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    start, end = now - datetime.timedelta(minutes=5), now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(start, end - datetime.timedelta(seconds=1)))
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _leaf(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    name: str,
    key: ec.EllipticCurvePublicKey,
    use: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None,
    days: float = LEAF_DAYS,
) -> x509.Certificate:
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = (
        _builder(ca.subject, _name(name), key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=True)
        .add_extension(issued_by, critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(ca_key, hashes.SHA256())
