package example.quotesign;

import com.nimbusds.jose.JOSEException;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.JWSObject;
import com.nimbusds.jose.crypto.RSASSAVerifier;
import com.nimbusds.jose.jwk.JWKSet;
import com.nimbusds.jose.jwk.RSAKey;
import com.nimbusds.jose.util.DefaultResourceRetriever;
import com.nimbusds.jose.util.JSONObjectUtils;
import java.io.File;
import java.io.IOException;
import java.net.URL;
import java.nio.file.Files;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.text.ParseException;
import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** Checks signed quotes with the partner's published keys, as whoever receives them does. */
public final class Verifier {
    private static final int TIMEOUT_MS = 5000;
    private static final int BYTES_MAX = 1 << 20;
    /** How long a key set is kept, and how long after a fetch it is not fetched again. */
    private static final Duration KEPT = Duration.ofMinutes(5);

    private static final Duration AGAIN = Duration.ofSeconds(10);

    /** The JWS is not a valid quote. */
    public static final class Unverified extends Exception {
        Unverified(String why, Throwable cause) {
            super(why, cause);
        }
    }

    /** The key set is not at hand, so nobody knows whether the JWS is a valid quote: try again. */
    public static final class KeysUnavailable extends Exception {
        KeysUnavailable(Exception cause) {
            super(cause.toString(), cause);
        }
    }

    private record Keys(JWKSet set, long came) {}

    private final URL url;
    private final DefaultResourceRetriever retriever;
    private volatile Keys keys;
    /** When the last fetch ended, and what was in its way; null where nothing was. */
    private Long asked;

    private Exception fault;

    /** With the key set at an https URL, whose certificate is held against the CA of a PEM file. */
    public Verifier(String jwksUrl, File ca) throws IOException, GeneralSecurityException {
        url = new URL(jwksUrl);
        var tls = trusting(ca).getSocketFactory();
        retriever = new DefaultResourceRetriever(TIMEOUT_MS, TIMEOUT_MS, BYTES_MAX, true, tls);
    }

    /** The claims, where the signature is RS256 of the key that the header's kid names and the quote has not expired. */
    public Map<String, Object> verify(String jws, Instant now) throws Unverified, KeysUnavailable {
        try {
            var signed = JWSObject.parse(jws);
            // The algorithm is ours to say, never the header's.
            if (!signed.getHeader().getAlgorithm().equals(JWSAlgorithm.RS256)) {
                throw new Unverified("the algorithm is not RS256", null);
            }
            if (!signed.verify(new RSASSAVerifier(key(signed.getHeader().getKeyID())))) {
                throw new Unverified("the signature is not of its key", null);
            }
            var claims = JSONObjectUtils.parse(signed.getPayload().toString());
            if (!Instant.parse(JSONObjectUtils.getString(claims, "expires_at")).isAfter(now)) {
                throw new Unverified("the quote has expired", null);
            }
            return claims;
        } catch (ParseException | JOSEException | RuntimeException error) {
            throw new Unverified(error.toString(), error);
        }
    }

    /** Looks the kid up. The set is kept for a while, and fetched again where a kid is not in it, for keys are exchanged. */
    private RSAKey key(String kid) throws Unverified, KeysUnavailable {
        if (kid == null) {
            throw new Unverified("the header names no kid", null);
        }
        var key = known(kid);
        return key != null ? key : fetched(kid);
    }

    private RSAKey known(String kid) {
        var keys = this.keys;
        boolean fresh = keys != null && System.nanoTime() - keys.came() < KEPT.toNanos();
        return fresh && keys.set().getKeyByKeyId(kid) instanceof RSAKey key ? key : null;
    }

    /** One at a time: whoever waits here finds what the fetch came to. */
    private synchronized RSAKey fetched(String kid) throws Unverified, KeysUnavailable {
        // Not for every made-up kid, though, nor at once where it failed.
        if (asked == null || System.nanoTime() - asked > AGAIN.toNanos()) {
            try {
                var set = JWKSet.parse(retriever.retrieveResource(url).getContent());
                keys = new Keys(set, System.nanoTime());
                fault = null;
            } catch (IOException | ParseException | RuntimeException unavailable) {
                fault = unavailable;
            }
            asked = System.nanoTime();
        }
        var key = known(kid);
        if (key == null && fault != null) {
            throw new KeysUnavailable(fault);
        }
        if (key == null) {
            throw new Unverified("the key set has no key `" + kid + "`", null);
        }
        return key;
    }

    private static SSLContext trusting(File ca) throws IOException, GeneralSecurityException {
        var store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (var pem = Files.newInputStream(ca.toPath())) {
            for (var certificate : CertificateFactory.getInstance("X.509").generateCertificates(pem)) {
                store.setCertificateEntry("ca-" + store.size(), certificate);
            }
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        var context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }
}
