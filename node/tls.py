"""The certificate with which a node serves TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from node.config import Listen


class TlsRefused(Exception):
    """The certificate or its key cannot be used; the message names the files and says what is wrong with them."""


def tls_of(listen: Listen) -> ssl.SSLContext | None:
    """As configured; None where plain HTTP is served. Reads the files. Raises TlsRefused."""
    if not listen.tls_certificate:
        return None
    return tls_context(Path(listen.tls_certificate), Path(listen.tls_key))


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a listener: TLS 1.2 or newer. Raises TlsRefused."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        for file in (certificate, key):
            file.open("rb").close()  # OpenSSL does not say which of them it could not read
        # Asked for a passphrase it would wait at a terminal that nobody sees.
        context.load_cert_chain(certificate, key, password=_refuse_passphrase)
    except ssl.SSLError as error:
        raise TlsRefused(f"[listen] tls_certificate {certificate} with tls_key {key}: {_reason(error)}") from error
    except OSError as error:
        raise TlsRefused(f"[listen] {error.filename or certificate}: {error.strerror}") from error
    except _Passphrase as error:
        raise TlsRefused(f"[listen] tls_key {key}: it is encrypted; give the node one without a passphrase") from error
    return context


class _Passphrase(Exception):
    pass


def _refuse_passphrase() -> str:
    raise _Passphrase


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's own name for it, in words."""
    return (error.reason or str(error)).replace("_", " ").lower()
