package example.quotesign;

import com.nimbusds.jose.util.Base64URL;
import com.nimbusds.jose.util.JSONObjectUtils;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.LongFunction;
import java.util.stream.Stream;
import quotesign.v1.QuoteSigning.SignQuoteResponse;

/** Shows the client at work against a gateway: one JSON line per step. README.md says how to run it. */
public final class Main {
    private static final List<String> REQUIRED = List.of("address", "ca", "cert", "key", "jwks", "payload");
    private static final Map<String, String> DEFAULTS = Map.of(
            "environment", "development",
            "service-config", "../service-config.json",
            "steps", "resume,sign,replay,conflict,schema,sequence,denied,expired,verify", // and burst, crowd and stream
            "count", "10", // how many quotes a burst, a crowd or a stream has
            "deadline", "30"); // seconds for a quote or a stream, retries and all

    @FunctionalInterface
    private interface Call {
        Gateway.Answer<SignQuoteResponse> make() throws Refused, InterruptedException;
    }

    private final Gateway gateway;
    private final Sequence sequence;
    private final Verifier verifier;
    private final Map<String, Object> template;
    private final int count;
    private final Duration deadline;
    /** The bytes of the quote made last, and of the one signed first: a service keeps them with its quote. */
    private byte[] sent;

    private byte[] kept;
    private SignQuoteResponse signed;

    private Main(Map<String, String> args) throws Exception {
        template = JSONObjectUtils.parse(Files.readString(Path.of(args.get("payload"))));
        count = Integer.parseInt(args.get("count"));
        deadline = Duration.ofMillis((long) (Double.parseDouble(args.get("deadline")) * 1000));
        var ca = new File(args.get("ca"));
        gateway = new Gateway(
                args.get("address"),
                ca,
                new File(args.get("cert")),
                new File(args.get("key")),
                Files.readString(Path.of(args.get("service-config"))),
                args.get("environment"),
                line -> System.err.println(JSONObjectUtils.toJSONString(line)));
        sequence = new Sequence(gateway, JSONObjectUtils.getString(template, "partner_id"), "");
        verifier = new Verifier(args.get("jwks"), ca);
    }

    public static void main(String[] arguments) throws Exception {
        var args = new HashMap<>(DEFAULTS);
        for (int at = 0; at + 1 < arguments.length; at += 2) {
            args.put(arguments[at].replaceFirst("^--", ""), arguments[at + 1]);
        }
        if (!args.keySet().containsAll(REQUIRED)) {
            System.err.println("needed: --" + String.join(" --", REQUIRED) + ", each with its value");
            System.exit(2);
        }
        var scenario = new Main(args);
        try {
            for (String step : args.get("steps").split(",")) {
                scenario.step(step);
            }
        } finally {
            scenario.gateway.close();
        }
    }

    private void step(String step) throws Exception {
        switch (step) {
            case "resume" -> tell("resume", Map.of("last", sequence.resume(deadline)));
            case "sign" -> {
                signed = issue("sign", Map.of());
                kept = sent;
            }
            case "replay" -> tryTo("replay", () -> gateway.sign(kept, deadline));
            case "conflict" -> {
                var other = JSONObjectUtils.parse(new String(kept, StandardCharsets.UTF_8));
                other.put("subscription_id", "sub_other");
                tryTo("conflict", () -> gateway.sign(bytes(other), deadline));
            }
            case "schema" -> issue("schema", Map.of("corridor", "gb-in", "total_customer_cost", "1.00"));
            case "sequence" -> {
                byte[] low = quote(Map.of()).apply(signed.getSequence());
                tryTo("sequence", () -> gateway.sign(low, deadline));
                // One who has lost count: the first number is refused, the next one fits.
                sequence.forget(signed.getSequence() - 1);
                issue("sequence-resumed", Map.of());
            }
            case "denied" -> issue("denied", Map.of("corridor", "GB-KP"));
            case "expired" -> issue("expired", Map.of("issued_at", in(-300), "expires_at", in(-1)));
            case "verify" -> verify();
            case "burst" -> {
                for (int at = 0; at < count; at++) {
                    issue("burst", Map.of());
                }
            }
            case "crowd" -> crowd();
            case "stream" -> {
                var quotes = Stream.generate(() -> quote(Map.of())).limit(count).toList();
                for (var outcome : sequence.issueAll(quotes, deadline)) {
                    tell("stream", outcome);
                }
            }
            default -> throw new IllegalArgumentException("no such step: " + step);
        }
    }

    /** Makes a quote of the template: a function from its number to its bytes. */
    private LongFunction<byte[]> quote(Map<String, Object> changes) {
        var claims = new LinkedHashMap<>(template);
        claims.put("quote_id", UUID.randomUUID().toString());
        claims.put("issued_at", in(0));
        claims.put("expires_at", in(600));
        claims.putAll(changes);
        return number -> {
            claims.put("quote_sequence", number);
            sent = bytes(claims);
            return sent;
        };
    }

    private SignQuoteResponse issue(String step, Map<String, Object> changes) throws Exception {
        return tryTo(step, () -> sequence.issue(quote(changes), deadline));
    }

    private void crowd() throws Exception {
        var crowd = Executors.newFixedThreadPool(count);
        var issued = new ArrayList<Future<Sequence.Outcome>>();
        for (int at = 0; at < count; at++) {
            var own = at == 0 ? deadline : deadline.dividedBy(2);
            issued.add(crowd.submit(() -> cameTo(() -> sequence.issue(quote(Map.of()), own))));
            Thread.sleep(at == 0 ? 500 : 0);
        }
        for (var one : issued) {
            tell("crowd", one.get());
        }
        crowd.shutdown();
    }

    /** Prints what a call came to. */
    private SignQuoteResponse tryTo(String step, Call call) throws Exception {
        var outcome = cameTo(call);
        tell(step, outcome);
        return outcome.signed() == null ? null : outcome.signed().value();
    }

    private static Sequence.Outcome cameTo(Call call) throws InterruptedException {
        try {
            return new Sequence.Outcome(call.make(), null);
        } catch (Refused refused) {
            return new Sequence.Outcome(null, refused);
        }
    }

    private static void tell(String step, Sequence.Outcome outcome) throws Exception {
        var facts = new LinkedHashMap<String, Object>();
        var refused = outcome.refused();
        if (refused == null) {
            var quote = outcome.signed().value();
            var digest = MessageDigest.getInstance("SHA-256").digest(quote.getJws().getBytes(StandardCharsets.US_ASCII));
            facts.put("sequence", quote.getSequence());
            facts.put("kid", quote.getKid());
            facts.put("replayed", quote.getReplayed());
            facts.put("attempts", outcome.signed().attempts());
            facts.put("correlation_id", outcome.signed().correlationId());
            facts.put("jws_sha256", HexFormat.of().formatHex(digest));
        } else {
            facts.put("code", refused.code.name());
            facts.put("reason", refused.reason);
            facts.put("action", refused.action.name().toLowerCase());
            facts.put("attempts", refused.attempts);
            facts.put("correlation_id", refused.correlationId);
            facts.put("violations", refused.violations);
            facts.put("quotas", refused.quotas);
        }
        tell(step, facts);
    }

    private void verify() {
        var parts = signed.getJws().split("\\.");
        var cheaper = new Base64URL(parts[1]).decodeToString().replace("\"partner_fee\":\"1.", "\"partner_fee\":\"0.");
        var changed = String.join(".", parts[0], Base64URL.encode(cheaper).toString(), parts[2]);
        verify("verify", signed.getJws(), Instant.now());
        verify("verify-changed", changed, Instant.now());
        verify("verify-expired", signed.getJws(), Instant.now().plus(1, ChronoUnit.HOURS));
    }

    private void verify(String step, String jws, Instant now) {
        try {
            tell(step, Map.of("valid", true, "quote_id", verifier.verify(jws, now).get("quote_id")));
        } catch (Verifier.Unverified why) {
            tell(step, Map.of("valid", false, "why", why.getMessage()));
        } catch (Verifier.KeysUnavailable why) {
            tell(step, Map.of("keys_unavailable", why.getMessage()));
        }
    }

    private static void tell(String step, Map<String, Object> facts) {
        var line = new LinkedHashMap<String, Object>();
        line.put("step", step);
        line.putAll(facts);
        System.out.println(JSONObjectUtils.toJSONString(line));
    }

    private static String in(long seconds) {
        return Instant.now().plusSeconds(seconds).truncatedTo(ChronoUnit.SECONDS).toString();
    }

    private static byte[] bytes(Map<String, Object> claims) {
        return JSONObjectUtils.toJSONString(claims).getBytes(StandardCharsets.UTF_8);
    }
}
