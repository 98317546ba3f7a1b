"""Tokens, JWTs and rates, by themselves."""

from __future__ import annotations

import base64
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from services.errors import Fault, Reason
from services.runtime.access import Access, AccessSettings, Buckets
from services.runtime.checks import SettingsError
from services.runtime.tokens import add_token, parse_tokens

SIGNERS = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS256": rsa.generate_private_key(65537, 2048),
}
FAR_FUTURE = 4_000_000_000


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def claims(**changes):
    base = {"iss": "us", "aud": "networks", "sub": "phone", "exp": time.time() + 60}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def door(tmp_path, keys: bytes, **changes):
    path = tmp_path / "keys"
    path.write_bytes(keys)
    return Access(
        AccessSettings(jwt_keys=path, jwt_issuer="us", jwt_audience="networks", **changes)
    )


def admit(access, token):
    return access.admit({"authorization": f"Bearer {token}"}, lambda: "ipv4:1.2.3.4:5")


def refused(access, token):
    with pytest.raises(Fault) as caught:
        admit(access, token)
    return caught.value.reason


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_each_algorithm(tmp_path, algorithm):
    access = door(tmp_path, pem(SIGNERS[algorithm]))
    good = jwt.encode(claims(), SIGNERS[algorithm], algorithm)
    assert admit(access, good) == "jwt:phone"
    assert admit(access, good) == "jwt:phone", "remembered"
    head, body, signature = good.split(".")
    flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
    assert refused(access, f"{head}.{body}.{flipped}") is Reason.BAD_TOKEN
    for other, signer in SIGNERS.items():
        if other != algorithm:
            assert refused(access, jwt.encode(claims(), signer, other)) is Reason.BAD_TOKEN


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, Reason.EXPIRED_TOKEN),
        ({"exp": None}, Reason.BAD_TOKEN),
        ({"aud": "others"}, Reason.BAD_TOKEN),
        ({"aud": None}, Reason.BAD_TOKEN),
        ({"iss": "them"}, Reason.BAD_TOKEN),
        ({"iss": None}, Reason.BAD_TOKEN),
        ({"sub": None}, Reason.BAD_TOKEN),
        ({"sub": ""}, Reason.BAD_TOKEN),
        ({"sub": "x" * 300}, Reason.BAD_TOKEN),
        ({"nbf": FAR_FUTURE}, Reason.BAD_TOKEN),
    ],
)
def test_claims(tmp_path, changes, reason):
    key = SIGNERS["EdDSA"]
    assert refused(door(tmp_path, pem(key)), jwt.encode(claims(**changes), key, "EdDSA")) is reason


def test_a_token_says_nothing_about_its_own_algorithm(tmp_path):
    """Neither `none`, nor the public key taken for a secret."""
    key = SIGNERS["RS256"]
    access = door(tmp_path, pem(key))
    assert refused(access, jwt.encode(claims(), None, "none")) is Reason.BAD_TOKEN

    def encoded(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    import hashlib
    import hmac

    body = f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{encoded(claims())}"
    forged = hmac.new(pem(key), body.encode(), hashlib.sha256).digest()
    forged = base64.urlsafe_b64encode(forged).rstrip(b"=").decode()
    assert refused(access, f"{body}.{forged}") is Reason.BAD_TOKEN


def test_scope(tmp_path):
    key = SIGNERS["EdDSA"]
    access = door(tmp_path, pem(key), jwt_scope="networks")
    assert admit(access, jwt.encode(claims(scope="a networks"), key, "EdDSA"))
    assert refused(access, jwt.encode(claims(scope="network"), key, "EdDSA")) is Reason.NOT_ALLOWED
    assert refused(access, jwt.encode(claims(), key, "EdDSA")) is Reason.NOT_ALLOWED


def test_a_key_set_is_chosen_from_by_key_id(tmp_path):
    entries = []
    for kid, (name, key) in zip("abc", SIGNERS.items(), strict=True):
        algorithm = jwt.get_algorithm_by_name(name)
        entries.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid})
    access = door(tmp_path, json.dumps({"keys": entries}).encode())
    for kid, (name, key) in zip("abc", SIGNERS.items(), strict=True):
        assert admit(access, jwt.encode(claims(sub=name), key, name, {"kid": kid})) == f"jwt:{name}"
        assert refused(access, jwt.encode(claims(), key, name, {"kid": "d"})) is Reason.BAD_TOKEN
        assert refused(access, jwt.encode(claims(), key, name)) is Reason.BAD_TOKEN


@pytest.mark.parametrize("data", ["private", b"rubbish", b"{}", b'{"keys": []}', b'{"keys": [{}]}'])
def test_keys_that_are_none(tmp_path, data):
    if data == "private":
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        data = SIGNERS["EdDSA"].private_bytes(*form)
    with pytest.raises(SettingsError, match="keys cannot be used"):
        door(tmp_path, data)


def test_a_shared_secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 40 + b"\n")
    settings = {"jwt_issuer": "us", "jwt_audience": "networks"}
    access = Access(AccessSettings(jwt_secret=path, **settings))
    assert admit(access, jwt.encode(claims(), b"s" * 40, "HS256")) == "jwt:phone"
    assert refused(access, jwt.encode(claims(), b"t" * 40, "HS256")) is Reason.BAD_TOKEN
    for bad in (b"short", pem(SIGNERS["EdDSA"]), b"ssh-ed25519 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"):
        path.write_bytes(bad)
        with pytest.raises(SettingsError):
            Access(AccessSettings(jwt_secret=path, **settings))


def test_tokens_and_jwts_together(tmp_path):
    token = add_token(tmp_path / "tokens", "kiosk")
    key = SIGNERS["EdDSA"]
    access = door(tmp_path, pem(key), tokens=tmp_path / "tokens")
    assert admit(access, token) == "token:kiosk"
    assert admit(access, jwt.encode(claims(), key, "EdDSA")) == "jwt:phone"
    assert token not in (tmp_path / "tokens").read_text()


@pytest.mark.parametrize("line", ["name", "name " + "g" * 64, "a b " + "0" * 64, "x " + "0" * 63])
def test_malformed_token_files(line):
    with pytest.raises(ValueError, match="line 2 is not"):
        parse_tokens(f"# comment\n{line}\n".encode())


def test_a_bucket_is_full_again_when_it_says():
    buckets = Buckets(rate=20, burst=2)
    buckets.take("a")
    buckets.take("a")
    with pytest.raises(Fault) as caught:
        buckets.take("a")
    earliest, latest = caught.value.retry
    assert 0 < earliest <= 50 < latest
    buckets.take("b")
    time.sleep(earliest / 1e3)
    buckets.take("a")


def test_buckets_are_bounded():
    buckets = Buckets(rate=1, burst=1, most=10)
    for number in range(1000):
        buckets.take(str(number))
    assert len(buckets._buckets) == 10


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("ipv4:1.2.3.4:1000", "ipv4:1.2.3.4:2000", True),
        ("ipv4:1.2.3.4:1000", "ipv4:1.2.3.5:1000", False),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:[2001:db8::2]:9", True),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:%5B2001:db9::1%5D:1", False),
        ("unix:", "unix:", True),
    ],
)
def test_without_tokens_an_address_is_a_device(one, two, same):
    access = Access(AccessSettings(device_rate=0.001, device_burst=1))
    access.admit({}, lambda: one)
    if same:
        with pytest.raises(Fault) as caught:
            access.admit({}, lambda: two)
        assert caught.value.reason is Reason.RATE_LIMITED
    else:
        access.admit({}, lambda: two)
