#!/usr/bin/env bash
# Verifies a signed quote with openssl alone, as anyone can who holds the partner's JWKS.
# Usage: scripts/verify-jws-openssl.sh JWS_FILE JWKS_FILE
# Prints `Verified OK` and exits 0, or says on stderr what is wrong and exits 1.
set -euo pipefail
export LC_ALL=C

fail() {
    echo "not verified: $1" >&2
    exit 1
}

# Turns bytes into base64url.
encode() {
    openssl base64 -A | tr -- '+/' '-_' | tr -d '='
}

# Writes the bytes of a base64url text to a file. Encoding them again must give the same text: one JWS, one spelling.
decode() {
    local text=$1 file=$2 padded
    padded=$(tr -- '-_' '+/' <<<"$text")
    while ((${#padded} % 4 != 0)); do
        padded+="="
    done
    printf '%s' "$padded" | openssl base64 -d -A -out "$file" || return 1
    [[ "$(encode <"$file")" == "$text" ]]
}

# Prints the kid of a header, and fails where the header is not, byte for byte, the one that the gateway writes.
kid_of() {
    local kid
    kid=$(sed -n 's/.*"kid":"\([A-Za-z0-9._:-]*\)".*/\1/p' "$1")
    printf '{"alg":"RS256","kid":"%s","typ":"JWT"}' "$kid" | cmp -s - "$1" && printf '%s' "$kid"
}

# Prints the one JWK of a kid. A JWK of an RSA public key holds no object, so a `{` begins each.
jwk_of() {
    local kid=$1 jwks_file=$2 found
    found=$(tr -d ' \t\r\n' <"$jwks_file" | tr '{' '\n' | grep -F "\"kid\":\"$kid\"") || return 1
    [[ $(wc -l <<<"$found") -eq 1 ]] && printf '%s' "$found"
}

# Prints a member of a JWK that is a text, and nothing if it has none.
member() {
    sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" <<<"$jwk"
}

# Prints a base64url number of a JWK as hexadecimal digits.
hex_member() {
    decode "$(member "$1")" "$dir/$1" || return 1
    od -An -v -tx1 "$dir/$1" | tr -d ' \n'
}

# Writes the SubjectPublicKeyInfo (RFC 5280, RFC 8017) of a modulus and an exponent as PEM.
public_key() {
    cat >"$dir/key.conf" <<CONF
asn1 = SEQUENCE:public_key_info
[public_key_info]
algorithm = SEQUENCE:rsa
key = BITWRAP,SEQUENCE:numbers
[rsa]
oid = OID:rsaEncryption
parameters = NULL
[numbers]
modulus = INTEGER:0x$1
exponent = INTEGER:0x$2
CONF
    openssl asn1parse -genconf "$dir/key.conf" -noout -out "$dir/key.der"
    openssl pkey -pubin -inform DER -in "$dir/key.der" -out "$dir/key.pem"
}

if [[ $# -ne 2 ]]; then
    echo "usage: $0 JWS_FILE JWKS_FILE" >&2
    exit 2
fi
[[ -r $1 ]] || fail "cannot read $1"
[[ -r $2 ]] || fail "cannot read $2"

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

jws=$(<"$1")
[[ $jws =~ ^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$ ]] || fail "not a compact JWS of three parts"
IFS=. read -r header payload signature <<<"$jws"
decode "$header" "$dir/header" || fail "the header is not base64url"
decode "$payload" "$dir/payload" || fail "the payload is not base64url"
decode "$signature" "$dir/signature" || fail "the signature is not base64url"

kid=$(kid_of "$dir/header") || fail "the header is not that of an RS256 quote"
jwk=$(jwk_of "$kid" "$2") || fail "the JWKS does not hold the kid $kid exactly once"
[[ $(member kty) == RSA ]] || fail "the JWK of $kid is not of an RSA key"
[[ $(member alg) =~ ^(RS256)?$ ]] || fail "the JWK of $kid is for another algorithm"
[[ $(member use) =~ ^(sig)?$ ]] || fail "the JWK of $kid is for another use"
modulus=$(hex_member n) || fail "the modulus of $kid is not base64url"
exponent=$(hex_member e) || fail "the exponent of $kid is not base64url"
((${#modulus} >= 512)) || fail "the key $kid has less than 2048 bits"
# openssl reads as many bytes as the key has, and would not see that more follow.
(($(wc -c <"$dir/signature") * 2 == ${#modulus})) || fail "the signature is not as long as the key $kid"
public_key "$modulus" "$exponent" || fail "openssl cannot read the key $kid"

printf '%s.%s' "$header" "$payload" >"$dir/signing_input"
openssl dgst -sha256 -verify "$dir/key.pem" -signature "$dir/signature" "$dir/signing_input" 2>/dev/null ||
    fail "the signature is not that of $kid over this header and payload"
