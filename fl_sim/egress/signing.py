"""A signature over the folder that leaves, with the owner's own key pair, by ``model-signing``.

OpenSSF's library signs a manifest of the folder's files in the form of a Sigstore bundle; with an
elliptic-curve key of one's own nothing is sent anywhere. It is the extra ``fl-sim[sign]``.
"""

from pathlib import Path
from typing import Any

from fl_sim.errors import FlSimError, legible
from fl_sim.files import briefly

SIGNATURE = "model.sig"


def require_signing() -> tuple[Any, Any]:
    """Return the library's modules that sign and verify.

    Raises:
        FlSimError: if it is not installed.
    """
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise FlSimError(
            f"Signatures need the package model-signing ({error.name} is missing): pip install "
            f"'fl-sim[sign]'."
        ) from None
    return signing, verifying


def require_key(key: Path, what: str) -> None:
    """Refuse a key that is not there.

    Raises:
        FlSimError: naming it.
    """
    if not key.is_file():
        raise FlSimError(f"The {what} key {legible(briefly(key))} does not exist.")


def sign(folder: Path, key: Path) -> Path:
    """Sign everything in a folder. Returns the signature's path.

    Args:
        folder: that leaves.
        key: the owner's private key: elliptic curve, PEM (``openssl ecparam -genkey -name
            prime256v1 -noout``).

    Raises:
        FlSimError: if the library or the key is missing, or the key is none.
    """
    require_key(key, "private")
    signing, _ = require_signing()
    path = folder / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
        config.set_hashing_config(_hashing()).sign(folder, path)
    except Exception as error:  # the library's own, and cryptography's
        said = legible(str(error).partition("\n")[0])
        raise FlSimError(f"The folder cannot be signed with that key: {said}.") from None
    return path


def require_signature(folder: Path, key: Path) -> None:
    """Refuse a folder that the owner of a key has not signed as it is.

    Args:
        folder: that came.
        key: the owner's public key (PEM).

    Raises:
        FlSimError: if there is no signature, it is of another key, or a file was changed.
    """
    require_key(key, "public")
    _, verifying = require_signing()
    path = folder / SIGNATURE
    shown = legible(briefly(folder))
    if not path.is_file():
        raise FlSimError(f"The folder {shown} is not signed: it has no {SIGNATURE}.")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
        config.set_hashing_config(_hashing()).verify(folder, path)
    except Exception as error:  # the library's own, and cryptography's
        said = legible(str(error).partition("\n")[0])
        raise FlSimError(f"The signature of {shown} does not hold: {said}.") from None


def _hashing() -> Any:
    """Return what is hashed: every file but the signature; by default git's would be left out."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
