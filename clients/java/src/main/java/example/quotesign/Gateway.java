package example.quotesign;

import com.google.protobuf.ByteString;
import com.nimbusds.jose.util.JSONObjectUtils;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import io.grpc.util.AdvancedTlsX509KeyManager;
import io.grpc.util.CertificateUtils;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.security.GeneralSecurityException;
import java.security.cert.CertificateException;
import java.text.ParseException;
import java.time.Duration;
import java.time.Instant;
import java.time.format.DateTimeParseException;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Function;
import quotesign.v1.QuoteSigning.GetSequenceRequest;
import quotesign.v1.QuoteSigning.SignQuoteRequest;
import quotesign.v1.QuoteSigning.SignQuoteResponse;
import quotesign.v1.QuoteSigning.SignQuotesRequest;
import quotesign.v1.QuoteSigning.SignQuotesResponse;
import quotesign.v1.QuoteSigningServiceGrpc;
import quotesign.v1.QuoteSigningServiceGrpc.QuoteSigningServiceBlockingStub;
import quotesign.v1.QuoteSigningServiceGrpc.QuoteSigningServiceStub;

/** A connection to a gateway over mutual TLS. It may be shared between threads. */
public final class Gateway implements AutoCloseable {
    static final int ATTEMPTS_MAX = 8;
    private static final Duration ATTEMPT = Duration.ofSeconds(5);
    /** No stream is kept longer: one that stands still must not hold up the rest for ever. */
    private static final Duration STREAM = Duration.ofSeconds(15);
    private static final Duration FIRST_ATTEMPT_MIN = Duration.ofSeconds(1);
    private static final long BACKOFF_MS = 200;
    private static final long BACKOFF_MAX_MS = 5000;
    private static final Metadata.Key<String> CORRELATION =
            Metadata.Key.of("x-correlation-id", Metadata.ASCII_STRING_MARSHALLER);

    private final File certificate;
    private final File key;
    private final AdvancedTlsX509KeyManager identity = new AdvancedTlsX509KeyManager();
    /** When the files were written that it has. */
    private long certificateWritten;

    private long keyWritten;
    private final ManagedChannel channel;
    private final QuoteSigningServiceBlockingStub stub;
    private final QuoteSigningServiceStub streams;
    private final String environment;
    final Consumer<Map<String, Object>> log;

    /** A signed quote, or where a sequence stands, with how many attempts it took. */
    public record Answer<T>(T value, int attempts, String correlationId) {}

    /** The certificates and the key are PEM files, {@code serviceConfig} is the text of clients/service-config.json. */
    public Gateway(
            String address,
            File ca,
            File certificate,
            File key,
            String serviceConfig,
            String environment,
            Consumer<Map<String, Object>> log)
            throws IOException, ParseException, GeneralSecurityException {
        this.certificate = certificate;
        this.key = key;
        readIdentity();
        var credentials = TlsChannelCredentials.newBuilder().trustManager(ca).keyManager(identity).build();
        channel = Grpc.newChannelBuilder(address, credentials)
                .defaultServiceConfig(JSONObjectUtils.parse(serviceConfig).entrySet().stream()
                        .collect(LinkedHashMap::new, (map, e) -> map.put(e.getKey(), asGrpc(e.getValue())), Map::putAll))
                // What a resolver finds may not replace it.
                .disableServiceConfigLookUp()
                .enableRetry()
                // A connection that died is noticed while a quote has time left.
                .keepAliveTime(10, TimeUnit.SECONDS)
                .keepAliveTimeout(5, TimeUnit.SECONDS)
                .build();
        stub = QuoteSigningServiceGrpc.newBlockingStub(channel);
        // The config's waiting and sending again are for single calls.
        streams = QuoteSigningServiceGrpc.newStub(channel).withWaitForReady();
        this.environment = environment;
        this.log = log;
    }

    /** This library wants every number of its service config as a Double. */
    private static Object asGrpc(Object value) {
        if (value instanceof Number number) {
            return number.doubleValue();
        }
        if (value instanceof java.util.List<?> list) {
            return list.stream().map(Gateway::asGrpc).toList();
        }
        if (value instanceof Map<?, ?> map) {
            Map<String, Object> converted = new LinkedHashMap<>();
            map.forEach((name, inner) -> converted.put((String) name, asGrpc(inner)));
            return converted;
        }
        return value;
    }

    /** Has the next connection begin with the certificate that is on disk now. Whether that is another than before. */
    private synchronized boolean readIdentity() throws IOException, GeneralSecurityException {
        long certificateNow = certificate.lastModified();
        long keyNow = key.lastModified();
        if (certificateNow == certificateWritten && keyNow == keyWritten) {
            return false;
        }
        try (var chain = new FileInputStream(certificate);
                var own = new FileInputStream(key)) {
            var certificates = CertificateUtils.getX509Certificates(chain);
            if (certificates.length == 0) {
                throw new CertificateException(certificate + " holds no certificate");
            }
            identity.updateIdentityCredentials(certificates, CertificateUtils.getPrivateKey(own));
        }
        certificateWritten = certificateNow;
        keyWritten = keyNow;
        return true;
    }

    /** Before a call: what a connection needs is there, and it is looked for now, not when this library would, after minutes at times. */
    private void prepare(boolean comeBack) {
        boolean exchanged = false;
        try {
            exchanged = readIdentity();
        } catch (IOException | GeneralSecurityException | RuntimeException halfWritten) {
            // They are being exchanged at this moment: the next call finds them.
        }
        if (comeBack || exchanged) {
            channel.resetConnectBackoff();
        }
    }

    @Override
    public void close() {
        channel.shutdownNow();
    }

    /** Has these bytes signed. Whatever happens, no others are sent, so that the answer is always the same JWS. */
    public Answer<SignQuoteResponse> sign(byte[] payload, Duration deadline) throws Refused, InterruptedException {
        var request = request(payload);
        return call(stub -> stub.signQuote(request), timeLeft(payload, deadline));
    }

    /** The last number taken in a sequence; the corridor is empty where the partner has one sequence. */
    public long lastNumber(String partner, String corridor, Duration deadline) throws Refused, InterruptedException {
        var request = GetSequenceRequest.newBuilder().setPartner(partner).setCorridor(corridor).build();
        return call(stub -> stub.getSequence(request), deadline).value().getLast();
    }

    /** What came over a stream under each tag; and how it ended, null where well. What has no answer then may be signed or not. */
    record Streamed(Map<Long, SignQuotesResponse> answers, Refused ended) {}

    /** Sends these bytes, by their tags, in their order over one stream. */
    Streamed signOverStream(LinkedHashMap<Long, byte[]> payloads, long leftNanos, String id) throws InterruptedException {
        prepare(true);
        var answers = new ConcurrentHashMap<Long, SignQuotesResponse>();
        var ended = new CompletableFuture<Refused>();
        var metadata = new Metadata();
        metadata.put(CORRELATION, id);
        var requests = streams.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata))
                .withDeadlineAfter(Math.min(leftNanos, STREAM.toNanos()), TimeUnit.NANOSECONDS)
                .signQuotes(new StreamObserver<SignQuotesResponse>() {
                    @Override
                    public void onNext(SignQuotesResponse answer) {
                        // What it did not ask for, or cannot read, is no answer; and none takes a signed quote away.
                        if (payloads.containsKey(answer.getTag()) && (answer.hasSigned() || answer.hasRefused())) {
                            answers.merge(answer.getTag(), answer, (one, other) -> one.hasSigned() ? one : other);
                        }
                    }

                    @Override
                    public void onError(Throwable fault) {
                        var status = Status.fromThrowable(fault);
                        ended.complete(Refused.of(status.asRuntimeException(Status.trailersFromThrowable(fault)), 0, id));
                    }

                    @Override
                    public void onCompleted() {
                        ended.complete(null);
                    }
                });
        payloads.forEach((tag, payload) -> requests.onNext(SignQuotesRequest.newBuilder()
                .setTag(tag)
                .setQuote(request(payload))
                .build()));
        requests.onCompleted();
        try {
            return new Streamed(answers, ended.get());
        } catch (ExecutionException never) {
            throw new IllegalStateException(never);
        } catch (InterruptedException interrupted) {
            ((ClientCallStreamObserver<SignQuotesRequest>) requests).cancel("interrupted", interrupted);
            throw interrupted;
        }
    }

    private SignQuoteRequest request(byte[] payload) {
        return SignQuoteRequest.newBuilder()
                .setEnvironment(environment)
                .setPayload(ByteString.copyFrom(payload))
                .build();
    }

    /** Makes a call until it is answered, refused for good, out of attempts or out of time. */
    private <T> Answer<T> call(Function<QuoteSigningServiceBlockingStub, T> once, Duration deadline)
            throws Refused, InterruptedException {
        long end = System.nanoTime() + deadline.toNanos();
        String id = UUID.randomUUID().toString();
        var metadata = new Metadata();
        metadata.put(CORRELATION, id);
        for (int attempt = 1; ; attempt++) {
            long left = Math.min(end - System.nanoTime(), ATTEMPT.toNanos());
            if (attempt == 1) {
                // What has expired is sent once all the same, for the gateway to say so.
                left = Math.max(left, FIRST_ATTEMPT_MIN.toNanos());
            }
            prepare(attempt > 1);
            var bounded = stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata))
                    .withDeadlineAfter(left, TimeUnit.NANOSECONDS);
            try {
                T answer = once.apply(bounded);
                log.accept(Map.of("correlation_id", id, "attempt", attempt, "code", "OK"));
                return new Answer<>(answer, attempt, id);
            } catch (StatusRuntimeException error) {
                var refused = Refused.of(error, attempt, id);
                long wait = pause(attempt, refused.retryAfter);
                boolean again = refused.action == Refused.Action.RETRY
                        && attempt < ATTEMPTS_MAX
                        && System.nanoTime() + wait < end;
                var line = new LinkedHashMap<String, Object>();
                line.put("correlation_id", id);
                line.put("attempt", attempt);
                line.putAll(Refused.said(refused));
                line.put("action", refused.action.name().toLowerCase());
                line.put("wait_s", again ? wait / 1e9 : null);
                log.accept(line);
                if (!again) {
                    throw refused;
                }
                TimeUnit.NANOSECONDS.sleep(wait);
            }
        }
    }

    /** As RetryInfo says and a little more, so that not all come back at once; else backing off with full jitter. */
    static long pause(int attempt, Duration retryAfter) {
        double random = ThreadLocalRandom.current().nextDouble();
        if (retryAfter != null) {
            return (long) (retryAfter.toNanos() * (1 + 0.2 * random));
        }
        return (long) (random * TimeUnit.MILLISECONDS.toNanos(Math.min(BACKOFF_MAX_MS, BACKOFF_MS << attempt)));
    }

    /** The deadline, or the time until the quote expires where that is shorter: then it is of no use to anybody. */
    private static Duration timeLeft(byte[] payload, Duration deadline) {
        try {
            var quote = JSONObjectUtils.parse(new String(payload, java.nio.charset.StandardCharsets.UTF_8));
            var left = Duration.between(Instant.now(), Instant.parse(JSONObjectUtils.getString(quote, "expires_at")));
            return left.compareTo(deadline) < 0 ? left : deadline;
        } catch (ParseException | DateTimeParseException | NullPointerException said) {
            return deadline; // the gateway says what is wrong with it
        }
    }
}
