package example.quotesign;

import com.nimbusds.jose.JOSEException;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.JWSObject;
import com.nimbusds.jose.crypto.RSASSAVerifier;
import com.nimbusds.jose.jwk.JWKSet;
import com.nimbusds.jose.jwk.RSAKey;
import com.nimbusds.jose.util.JSONObjectUtils;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.text.ParseException;
import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** Checks signed quotes with the partner's published keys, as whoever receives them does. */
public final class Verifier {
    private static final long FETCH_S = 5;
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
        KeysUnavailable(String why, Throwable cause) {
            super(why, cause);
        }
    }

    /** A fetch of the key set: since when, and what it comes to. */
    private record Fetch(long begun, CompletableFuture<JWKSet> set) {}

    private final HttpRequest request;
    private final HttpClient client;
    /** The last one, which may be under way, and the one that brought the keys. */
    private Fetch last;

    private volatile Fetch good;

    /** With the key set at an https URL, whose certificate is held against the CA of a PEM file. */
    public Verifier(String jwksUrl, File ca) throws IOException, GeneralSecurityException {
        request = HttpRequest.newBuilder(URI.create(jwksUrl)).build();
        client = HttpClient.newBuilder()
                .sslContext(trusting(ca))
                .version(HttpClient.Version.HTTP_1_1)
                .followRedirects(HttpClient.Redirect.NEVER)
                .build();
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
        if (key != null) {
            return key;
        }
        long begun = System.nanoTime();
        var last = fetched();
        try {
            if (last.set().join().getKeyByKeyId(kid) instanceof RSAKey found) {
                return found;
            }
        } catch (CompletionException unavailable) {
            throw new KeysUnavailable(unavailable.getCause().toString(), unavailable.getCause());
        }
        if (last.begun() - begun < 0) {
            throw new KeysUnavailable("a moment ago the key set had no key `" + kid + "`", null);
        }
        throw new Unverified("the key set has no key `" + kid + "`", null);
    }

    private RSAKey known(String kid) {
        var good = this.good;
        boolean fresh = good != null && System.nanoTime() - good.begun() < KEPT.toNanos();
        return fresh && good.set().join().getKeyByKeyId(kid) instanceof RSAKey key ? key : null;
    }

    /** A fetch of now: not one for every made-up kid, though, nor at once where one failed. */
    private synchronized Fetch fetched() {
        if (last == null || System.nanoTime() - last.begun() > AGAIN.toNanos()) {
            var fetch = new Fetch(System.nanoTime(), get());
            fetch.set().thenRun(() -> good = fetch);
            last = fetch;
        }
        return last;
    }

    private CompletableFuture<JWKSet> get() {
        var body = new ByteArrayOutputStream();
        var answer = client.sendAsync(request, BodyHandlers.ofByteArrayConsumer(part -> part.ifPresent(bytes -> {
            body.writeBytes(bytes);
            if (body.size() > BYTES_MAX) {
                throw new IllegalStateException("the key set is too large");
            }
        })));
        var set = answer.thenApply(head -> {
            if (head.statusCode() != 200) {
                throw new IllegalStateException("the key set's answer is " + head.statusCode());
            }
            try {
                return JWKSet.parse(body.toString(StandardCharsets.UTF_8));
            } catch (ParseException unreadable) {
                throw new CompletionException(unreadable);
            }
        });
        // In all, and not from one part to the next.
        set.orTimeout(FETCH_S, TimeUnit.SECONDS).whenComplete((keys, fault) -> answer.cancel(true));
        return set;
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
