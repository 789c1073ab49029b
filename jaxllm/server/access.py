"""Who may call: API keys and TLS, for both services."""

import hashlib
import hmac
import ssl
from collections.abc import Iterable
from pathlib import Path

import grpc

from jaxllm.config import ServerConfig
from jaxllm.errors import ConfigError

REFUSAL = "no valid API key: send one as `Authorization: Bearer KEY` or `x-api-key: KEY`"


class Keys:
    """The keys that clients may send; none of them lets everybody in. Only their digests are kept."""

    def __init__(self, keys: Iterable[str] = ()):
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def of(cls, config: ServerConfig) -> "Keys":
        """Raises ConfigError for an empty key, one that no header can carry, and a file without any."""
        keys = list(config.api_key)
        if config.api_key_file is not None:
            lines = [line.strip() for line in _read(config.api_key_file, "api_key_file").decode().splitlines()]
            found = [line for line in lines if line and not line.startswith("#")]
            if not found:
                raise ConfigError(f"api_key_file={config.api_key_file!r}: holds no key; write one a line")
            keys += found
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise ConfigError("api_key: a key is empty, or holds a space or what is not ASCII; headers cannot carry it")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: str | None, x_api_key: str | None) -> bool:
        """Whether one of the two headers carries a key."""
        return self.identify(authorization, x_api_key) is not None

    def identify(self, authorization: str | None, x_api_key: str | None) -> bytes | None:
        """Who calls: the digest of the key that one of the two headers carries, or None where neither does.

        Without keys all callers are one. Takes as long for a wrong key as for a right one.
        """
        if not self._digests:
            return b""
        scheme, _, token = (authorization or "").partition(" ")
        sent = [_digest(token.strip())] if scheme.lower() == "bearer" else []
        if x_api_key is not None:
            sent.append(_digest(x_api_key))
        # Every one is compared with every one, so that the time tells nothing of which was right.
        matches = [digest for known in self._digests for digest in sent if hmac.compare_digest(known, digest)]
        return matches[0] if matches else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def check_tls(config: ServerConfig) -> None:
    """Raises ConfigError for certificates and keys that cannot be used, or do not belong together."""
    if config.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
        if (path := getattr(config, name)) is not None:
            _read(path, name)
    try:
        # An empty passphrase, or OpenSSL would ask the terminal for it.
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"ssl_certfile={config.ssl_certfile!r}: cannot be used with its key ({error}); both must be PEM, belong "
            "together, and the key must have no passphrase"
        ) from None
    try:
        if config.ssl_ca_certs is not None:
            context.load_verify_locations(config.ssl_ca_certs)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"ssl_ca_certs={config.ssl_ca_certs!r}: no certificates in PEM ({error})") from None


def grpc_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """What the gRPC service presents and asks for; None without TLS."""
    if config.ssl_certfile is None:
        return None
    certificates = Path(config.ssl_certfile).read_bytes()
    key = certificates if config.ssl_keyfile is None else Path(config.ssl_keyfile).read_bytes()
    authorities = None if config.ssl_ca_certs is None else Path(config.ssl_ca_certs).read_bytes()
    return grpc.ssl_server_credentials([(key, certificates)], authorities, authorities is not None)


def _read(path: str, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}={path!r}: cannot be read ({error.strerror})") from None
