"""Verifies a signed quote with jwcrypto, an implementation that shares nothing with the gateway.

Usage: /usr/bin/python3 tests/external/verify_jws.py JWS_FILE JWKS_FILE

Accepts a compact JWS with RS256 only, by the one key of its kid. Prints the payload, byte for byte, and exits 0;
or says on stderr what is wrong and exits 1.
"""

import json
import sys

from jwcrypto.common import JWException, base64url_decode, base64url_encode
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS


class Refused(Exception):
    """The JWS is not what it should be."""


def key_of(kid, jwks):
    """The one JWK of a kid. Two of one kid would leave open which of them signed."""
    found = [key for key in json.loads(jwks)["keys"] if key.get("kid") == kid]
    if len(found) != 1:
        raise Refused(f"the JWKS holds {len(found)} keys of the kid {kid!r}")
    if found[0].get("kty") != "RSA" or found[0].get("alg", "RS256") != "RS256":
        raise Refused(f"the key {kid!r} is not an RSA key for RS256")
    return JWK(**found[0])


def verify(text, jwks):
    """The payload of a compact JWS, once its signature is known to be right."""
    parts = text.split(".")
    if len(parts) != 3 or any(base64url_encode(base64url_decode(part)) != part for part in parts):
        raise Refused("not three canonical base64url parts")
    header = json.loads(base64url_decode(parts[0]))
    jws = JWS()
    jws.allowed_algs = ["RS256"]
    jws.deserialize(text)
    jws.verify(key_of(header["kid"], jwks))
    json.loads(jws.payload)
    return jws.payload


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: verify_jws.py JWS_FILE JWKS_FILE")
    try:
        with open(sys.argv[1], encoding="ascii") as jws, open(sys.argv[2], encoding="utf-8") as jwks:
            payload = verify(jws.read().strip(), jwks.read())
    except (JWException, Refused, OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"not verified: {error!r}")
    sys.stdout.buffer.write(payload + b"\n")


if __name__ == "__main__":
    main()
