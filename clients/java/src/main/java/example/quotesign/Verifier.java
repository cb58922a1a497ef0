package example.quotesign;

import com.nimbusds.jose.JOSEException;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.jwk.source.JWKSourceBuilder;
import com.nimbusds.jose.proc.BadJOSEException;
import com.nimbusds.jose.proc.DefaultJOSEProcessor;
import com.nimbusds.jose.proc.JWSVerificationKeySelector;
import com.nimbusds.jose.proc.SecurityContext;
import com.nimbusds.jose.util.DefaultResourceRetriever;
import com.nimbusds.jose.util.JSONObjectUtils;
import com.nimbusds.jose.JWSObject;
import java.io.File;
import java.io.IOException;
import java.net.URL;
import java.nio.file.Files;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.text.ParseException;
import java.time.Instant;
import java.util.Map;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** Checks signed quotes with the partner's published keys, as whoever receives them does. */
public final class Verifier {
    private static final int TIMEOUT_MS = 5000;
    private static final int BYTES_MAX = 1 << 20;

    /** The JWS is not a valid quote. */
    public static final class Unverified extends Exception {
        Unverified(String why, Throwable cause) {
            super(why, cause);
        }
    }

    private final DefaultJOSEProcessor<SecurityContext> processor = new DefaultJOSEProcessor<>();

    /** With the key set at an https URL, whose certificate is held against the CA of a PEM file. */
    public Verifier(String jwksUrl, File ca) throws IOException, GeneralSecurityException {
        var tls = trusting(ca).getSocketFactory();
        var retriever = new DefaultResourceRetriever(TIMEOUT_MS, TIMEOUT_MS, BYTES_MAX, true, tls);
        // Cached; fetched again when a kid is not in it, for keys are exchanged.
        var keys = JWKSourceBuilder.create(new URL(jwksUrl), retriever).build();
        // The algorithm is ours to say, never the header's.
        processor.setJWSKeySelector(new JWSVerificationKeySelector<>(JWSAlgorithm.RS256, keys));
        processor.setJWSTypeVerifier(new com.nimbusds.jose.proc.DefaultJOSEObjectTypeVerifier<>(com.nimbusds.jose.JOSEObjectType.JWT));
    }

    /** The claims, where the signature is RS256 of the key that the header's kid names and the quote has not expired. */
    public Map<String, Object> verify(String jws, Instant now) throws Unverified {
        try {
            var signed = JWSObject.parse(jws);
            // Without one, whichever key fits would be tried.
            if (signed.getHeader().getKeyID() == null) {
                throw new Unverified("the header names no kid", null);
            }
            var claims = JSONObjectUtils.parse(processor.process(signed, null).toString());
            if (!Instant.parse(JSONObjectUtils.getString(claims, "expires_at")).isAfter(now)) {
                throw new Unverified("the quote has expired", null);
            }
            return claims;
        } catch (ParseException | BadJOSEException | JOSEException | RuntimeException error) {
            throw new Unverified(error.toString(), error);
        }
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
