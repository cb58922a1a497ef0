"""Fetches a key set over HTTPS and verifies a compact JWS with it, by jwcrypto.

Usage: fetch_and_verify.py URL JWS-FILE CA-FILE. Exit code 1 where it is not valid.
"""

import ssl
import sys
import urllib.request

from jwcrypto import jwk, jws

url, path, ca = sys.argv[1:]
with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=ca)) as answer:
    assert answer.headers["Content-Type"] == "application/json"
    keys = jwk.JWKSet.from_json(answer.read().decode())
token = jws.JWS()
try:
    with open(path) as file:
        token.deserialize(file.read().strip())
    kid = token.jose_header["kid"]
    token.allowed_algs = ["RS256"]
    token.verify(keys.get_key(kid))
except Exception as fault:  # Whatever it is, the quote is not taken.
    print(fault, file=sys.stderr)
    sys.exit(1)
print(kid, token.payload.decode())
