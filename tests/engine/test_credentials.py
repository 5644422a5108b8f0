"""Certificates and keys of a trial: who reads them, who trusts them, and that none comes twice."""

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fl_sim.engine.credentials import Certificates, make_certificates, make_node_key


def _folder(place: Path, name: str) -> Path:
    folder = place / name
    folder.mkdir()
    return folder


def test_only_the_owner_can_read_them(tmp_path: Path) -> None:
    make_certificates(tmp_path, "127.0.0.1")
    make_node_key(tmp_path / "hospital-0.key")
    files = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert files == dict.fromkeys(
        ("ca.pem", "superlink.pem", "superlink.key", "hospital-0.key"), 0o600
    )


def test_keys_are_elliptic_and_never_the_same(tmp_path: Path) -> None:
    keys = [make_node_key(tmp_path / name) for name in ("a", "b")]
    private = [load_ssh_private_key(key.private.read_bytes(), None) for key in keys]
    assert all(isinstance(k, ec.EllipticCurvePrivateKey) and k.key_size == 384 for k in private)
    assert keys[0].public != keys[1].public
    with pytest.raises(FileExistsError):
        make_node_key(tmp_path / "a")


def test_the_authority_signs_once_and_its_key_is_not_kept(tmp_path: Path) -> None:
    made = [make_certificates(_folder(tmp_path, name), "127.0.0.1") for name in ("a", "b")]
    authorities = [x509.load_pem_x509_certificate(m.authority.read_bytes()) for m in made]
    assert authorities[0].public_key() != authorities[1].public_key()
    for file in (tmp_path / "a").iterdir():
        text = file.read_text()
        assert "PRIVATE KEY" not in text or file.name == "superlink.key"


def _shake_hands(served: Certificates, trusted: Certificates, name: str) -> None:
    """Let a client that trusts one authority meet a server of perhaps another."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(served.certificate, served.key)
    client = ssl.create_default_context(cafile=str(trusted.authority))
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    other = threading.Thread(target=serve)
    other.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        other.join()


def test_who_trusts_the_authority_trusts_the_superlink_at_its_address(tmp_path: Path) -> None:
    one, other = (make_certificates(_folder(tmp_path, n), "127.0.0.1") for n in ("a", "b"))
    _shake_hands(one, one, "127.0.0.1")
    _shake_hands(one, one, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(one, other, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        _shake_hands(one, one, "10.0.0.1")
