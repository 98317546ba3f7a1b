"""Who may call, and how often: API tokens, JSON Web Tokens, rates a device."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from services.errors import Fault, Reason
from services.runtime.checks import SettingsError
from services.runtime.tokens import PREFIX, digest_of, parse_tokens
from services.runtime.watched import Reloads, Watched

_BEARER = "bearer "
_LONGEST_TOKEN = 8 * 1024
_LONGEST_NAME = 256
_SHORTEST_SECRET = 32
_KNOWN_JWTS = 10_000
_BUCKETS = 50_000
_CLOCK_SKEW = 10.0


@dataclass(frozen=True)
class AccessSettings:
    """tokens: file of API tokens' digests (`forward-ofa token`). None and no jwt_*: anybody who
        reaches the port is answered.
    jwt_keys: PEM public key (Ed25519, P-256 or RSA) or JWKS file: bearer tokens may be JWTs
        signed with EdDSA, ES256 or RS256, whichever the key is for.
    jwt_secret: file whose bytes, 32 or more, are the secret of HS256, in place of jwt_keys.
    jwt_issuer, jwt_audience: what iss and aud of a JWT must be; required with JWTs.
    jwt_scope: a word that a JWT's scope must contain; "": none.
    device_rate: calls a second that one device may make, by the token's name or the JWT's sub,
        by address where neither is asked for; 0: no limit. Each process counts for itself.
    device_burst: so many at once after a pause.
    """

    tokens: Path | None = None
    jwt_keys: Path | None = None
    jwt_secret: Path | None = None
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_scope: str = ""
    device_rate: float = 0.0
    device_burst: int = 20

    def __post_init__(self) -> None:
        for path in (self.tokens, self.jwt_keys, self.jwt_secret):
            if path is not None and not path.is_file():
                raise SettingsError(f"there is no file {path}: devices' tokens need it")
        if self.jwt_keys is not None and self.jwt_secret is not None:
            raise SettingsError("give jwt_keys or jwt_secret, not both")
        if self.has_jwt and not (self.jwt_issuer and self.jwt_audience):
            raise SettingsError(
                "JWTs need --jwt-issuer and --jwt-audience: without them a token made for "
                "another service would be good here"
            )
        if not self.has_jwt and (self.jwt_issuer or self.jwt_audience or self.jwt_scope):
            raise SettingsError("jwt_issuer, jwt_audience and jwt_scope need --jwt-keys")
        if not 0 <= self.device_rate < math.inf or self.device_burst < 1:
            raise SettingsError("device_rate must not be negative, device_burst at least 1")

    @property
    def has_jwt(self) -> bool:
        """Whether JWTs are accepted."""
        return self.jwt_keys is not None or self.jwt_secret is not None

    @property
    def asks(self) -> bool:
        """Whether callers must show a token."""
        return self.tokens is not None or self.has_jwt


class Access:
    """The door for devices. Raises SettingsError for files that make no sense."""

    def __init__(self, settings: AccessSettings, reloads: Reloads | None = None) -> None:
        self._asks = settings.asks
        self._tokens: Watched[_TokenTable] | None = (
            None
            if settings.tokens is None
            else _watched("tokens", settings.tokens, _TokenTable, reloads)
        )
        self._jwts = _Jwts(settings, reloads) if settings.has_jwt else None
        self._rates = (
            Buckets(settings.device_rate, settings.device_burst) if settings.device_rate else None
        )

    @property
    def open(self) -> bool:
        """Whether there is nothing to check."""
        return not self._asks and self._rates is None

    def admit(self, metadata: Mapping[str, str | bytes], peer: Callable[[], str]) -> str:
        """The caller's name, "" if nobody asks for one.

        Raises Fault NO_TOKEN, BAD_TOKEN, EXPIRED_TOKEN, NOT_ALLOWED, RATE_LIMITED.
        """
        name = self._name(metadata.get("authorization")) if self._asks else ""
        if self._rates is not None:
            self._rates.take(name or _address(peer()))
        return name

    def refresh(self) -> None:
        """Looks whether files have changed, also when nobody calls."""
        if self._tokens is not None:
            self._tokens.get()
        if self._jwts is not None:
            self._jwts.refresh()

    def _name(self, header: str | bytes | None) -> str:
        if not isinstance(header, str) or header[: len(_BEARER)].lower() != _BEARER:
            raise Fault(Reason.NO_TOKEN)
        token = header[len(_BEARER) :].strip()
        if not token:
            raise Fault(Reason.NO_TOKEN)
        if len(token) > _LONGEST_TOKEN:
            raise Fault(Reason.BAD_TOKEN, detail="too long")
        if self._tokens is not None and (self._jwts is None or token.startswith(PREFIX)):
            return self._tokens.get().name_of(token)
        assert self._jwts is not None
        return self._jwts.name_of(token)


class _TokenTable:
    """Digest -> name. What is looked up is a hash with a key of this process, so that the time
    it takes says nothing about the digests; the comparison proper takes constant time."""

    def __init__(self, data: bytes) -> None:
        self._key = secrets.token_bytes(32)
        self._entries = {self._slot(digest): (digest, name) for digest, name in parse_tokens(data)}

    def name_of(self, token: str) -> str:
        """Raises Fault BAD_TOKEN."""
        digest = digest_of(token)
        expected, name = self._entries.get(self._slot(digest), (bytes(32), ""))
        if not hmac.compare_digest(digest, expected) or not name:
            raise Fault(Reason.BAD_TOKEN, detail="unknown token")
        return f"token:{name}"

    def _slot(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._key, digest_size=16).digest()


class _Jwts:
    """Checks signatures; a token seen before is not checked again until it expires, since a
    signature costs a tenth of a request."""

    def __init__(self, settings: AccessSettings, reloads: Reloads | None) -> None:
        self._settings = settings
        path = settings.jwt_keys or settings.jwt_secret
        assert path is not None
        read = _public_keys if settings.jwt_keys is not None else _secret
        self._keys = _watched("jwt", path, read, reloads)
        self._generation = 0
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def refresh(self) -> None:
        self._keys.get()

    def name_of(self, token: str) -> str:
        """Raises Fault BAD_TOKEN, EXPIRED_TOKEN, NOT_ALLOWED."""
        keys = self._keys.get()
        if self._keys.generation != self._generation:
            self._generation = self._keys.generation
            self._known.clear()
        digest = digest_of(token)
        name, expires = self._known.get(digest, ("", 0.0))
        if expires > time.time():
            return name
        name, expires = self._check(token, keys)
        self._known[digest] = (name, expires)
        if len(self._known) > _KNOWN_JWTS:
            self._known.popitem(last=False)
        return name

    def _check(self, token: str, keys: _Keys) -> tuple[str, float]:
        key = _choose(token, keys)
        try:
            claims = jwt.decode(
                token,
                key.key,
                # One algorithm a key: what the token says of itself chooses nothing.
                algorithms=[key.algorithm],
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=_CLOCK_SKEW,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise Fault(Reason.EXPIRED_TOKEN) from error
        except jwt.PyJWTError as error:
            raise Fault(Reason.BAD_TOKEN, detail=type(error).__name__) from error
        name = claims["sub"]
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
            raise Fault(Reason.BAD_TOKEN, detail="sub is no name")
        scope = self._settings.jwt_scope
        if scope and scope not in str(claims.get("scope", "")).split():
            raise Fault(Reason.NOT_ALLOWED, detail="scope")
        return f"jwt:{name}", float(claims["exp"]) + _CLOCK_SKEW


@dataclass(frozen=True)
class _Key:
    key: Any
    algorithm: str


_Keys = Mapping[str, _Key]
"""By key id; "" if the file names none."""


def _choose(token: str, keys: _Keys) -> _Key:
    try:
        kid = jwt.get_unverified_header(token).get("kid", "")
    except jwt.PyJWTError as error:
        raise Fault(Reason.BAD_TOKEN, detail="no JWT") from error
    if len(keys) == 1 and ("" in keys or not kid):
        return next(iter(keys.values()))
    if kid not in keys:
        raise Fault(Reason.BAD_TOKEN, detail="unknown key id")
    return keys[kid]


def _public_keys(data: bytes) -> _Keys:
    if data.lstrip().startswith(b"{"):
        return _key_set(data)
    try:
        key = load_pem_public_key(data)
    except ValueError:
        raise ValueError(
            "neither a PEM public key nor a JWKS; a private key or certificate is not accepted"
        ) from None
    return {"": _Key(key, _algorithm(key))}


def _key_set(data: bytes) -> _Keys:
    try:
        entries = json.loads(data)["keys"]
        found = {}
        for entry in entries:
            if entry.get("kty") not in ("RSA", "EC", "OKP") or "d" in entry:
                raise ValueError("only public keys of type RSA, EC or OKP are accepted")
            key = jwt.PyJWK.from_dict(entry, _declared(entry)).key
            found[str(entry.get("kid", ""))] = _Key(key, _algorithm(key))
    except (KeyError, TypeError, AttributeError, jwt.PyJWTError, json.JSONDecodeError) as error:
        raise ValueError(f"not a JWKS: {type(error).__name__}") from None
    if not found or len(found) != len(entries):
        raise ValueError("a JWKS needs keys, each with a key id of its own")
    return found


def _declared(entry: Mapping[str, Any]) -> str:
    return {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[entry["kty"]]


def _algorithm(key: object) -> str:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "EdDSA"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return "RS256"
    raise ValueError("use a public key of Ed25519, P-256, or RSA with at least 2048 bits")


def _secret(data: bytes) -> _Keys:
    secret = data.strip()
    if len(secret) < _SHORTEST_SECRET:
        raise ValueError(f"the secret has fewer than {_SHORTEST_SECRET} bytes")
    if secret.startswith((b"-----BEGIN", b"ssh-", b"ecdsa-")):
        raise ValueError("this is a key, not a secret: give it as --jwt-keys")
    return {"": _Key(secret, "HS256")}


def _watched(
    what: str, path: Path, parse: Callable[[bytes], Any], reloads: Reloads | None
) -> Watched[Any]:
    try:
        return Watched(what, [path], lambda contents: parse(contents[0]), reloads)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be used: {error}") from error


class Buckets:
    """A token bucket a device, of the devices seen last.

    One that was forgotten starts full again, so `most` devices have to come in between to
    gain a burst; memory is bounded by it.
    """

    def __init__(self, rate: float, burst: int, most: int = _BUCKETS) -> None:
        self._rate, self._burst, self._most = rate, burst, most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, device: str) -> None:
        """Raises Fault RATE_LIMITED, with the moment when there is a token again."""
        now = time.monotonic()
        level, at = self._buckets.pop(device, (float(self._burst), now))
        level = min(self._burst, level + (now - at) * self._rate)
        allowed = level >= 1
        self._buckets[device] = (level - 1 if allowed else level, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        if not allowed:
            self._refuse((1 - level) / self._rate)

    def _refuse(self, seconds: float) -> NoReturn:
        earliest = math.ceil(min(seconds, 3600.0) * 1e3)
        # Wide enough that devices behind one address do not come back together.
        raise Fault(Reason.RATE_LIMITED, retry=(earliest, earliest + max(100, earliest // 2)))


def _address(peer: str) -> str:
    """gRPC's peer without the port; IPv6 by its /64, which is what one household gets."""
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
        try:
            return str(ipaddress.ip_network((host, 64), strict=False))
        except ValueError:
            return host
    return kind
