"""Certificates and keys of one trial federation: elliptic curves, P-384, for this run alone."""

import datetime
import ipaddress
import os
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = datetime.timedelta(days=30)
_CLOCKS = datetime.timedelta(hours=1)
"""How far the clocks of two machines may be apart."""


class Certificates(NamedTuple):
    """Files of the SuperLink's side.

    Args:
        authority: certificate that nodes trust; its key is not kept.
        certificate: the SuperLink's.
        key: the SuperLink's private key.
    """

    authority: Path
    certificate: Path
    key: Path


class NodeKey(NamedTuple):
    """A SuperNode's key pair.

    Args:
        private: file of the private key, in OpenSSH's format.
        public: the public key, as Flower registers it.
    """

    private: Path
    public: bytes


def make_certificates(folder: Path, address: str) -> Certificates:
    """Make an authority and let it sign a SuperLink's certificate.

    Args:
        folder: where ``ca.pem``, ``superlink.pem`` and ``superlink.key`` are written, mode 0600.
        address: IP address that the SuperLink answers at; ``localhost`` is named, too.
    """
    authority_key, server_key = _new_key(), _new_key()
    issuer = _named("fl-sim trial authority")
    authority = (
        _certificate(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False
        )
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA384())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(address))]
    server = (
        _certificate(_named("fl-sim trial SuperLink"), issuer, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .add_extension(_usage(signs_certificates=False), critical=True)
        .sign(authority_key, hashes.SHA384())
    )
    pem = serialization.Encoding.PEM
    return Certificates(
        _written(folder / "ca.pem", authority.public_bytes(pem)),
        _written(folder / "superlink.pem", server.public_bytes(pem)),
        _written(folder / "superlink.key", _private(server_key, serialization.PrivateFormat.PKCS8)),
    )


def make_node_key(file: Path) -> NodeKey:
    """Make a SuperNode's key pair.

    Args:
        file: where the private key is written, mode 0600.
    """
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    key = _new_key()
    _written(file, _private(key, serialization.PrivateFormat.OpenSSH))
    return NodeKey(file, public_key_to_bytes(key.public_key()))


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + VALID)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _written(file: Path, content: bytes) -> Path:
    """Write a new file that nobody else can read at any time."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as opened:
        opened.write(content)
    return file
