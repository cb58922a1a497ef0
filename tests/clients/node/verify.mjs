// Fetches a key set over HTTPS and verifies a compact JWS with it, as a verifier written with `jose` does.
// Usage: node verify.mjs URL JWS-FILE; NODE_EXTRA_CA_CERTS names the CA. Exit code 1 where it is not valid.
import { readFileSync } from "node:fs";
import { compactVerify, createRemoteJWKSet } from "jose";

const [url, file] = process.argv.slice(2);
const keys = createRemoteJWKSet(new URL(url));
try {
  const { payload, protectedHeader } = await compactVerify(readFileSync(file, "utf8").trim(), keys, {
    algorithms: ["RS256"],
  });
  console.log(`${protectedHeader.kid} ${new TextDecoder().decode(payload)}`);
} catch (fault) {
  console.error(fault.code ?? String(fault));
  process.exit(1);
}
