// Fetches a key set over HTTPS and verifies a compact JWS with it, as a verifier written with go-jose does.
// Usage: verify URL JWS-FILE CA-FILE. Exit code 1 where it is not valid.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/go-jose/go-jose/v3"
)

func verify(url, file, ca string) (string, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var keys jose.JSONWebKeySet
	if err := json.NewDecoder(answer.Body).Decode(&keys); err != nil {
		return "", err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	jws, err := jose.ParseSigned(strings.TrimSpace(string(text)))
	if err != nil {
		return "", err
	}
	kid := jws.Signatures[0].Header.KeyID
	found := keys.Key(kid)
	if len(found) != 1 || !found[0].Valid() || found[0].Algorithm != "RS256" {
		return "", fmt.Errorf("the set has no key %q", kid)
	}
	payload, err := jws.Verify(found[0])
	return kid + " " + string(payload), err
}

func main() {
	told, err := verify(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(told)
}
