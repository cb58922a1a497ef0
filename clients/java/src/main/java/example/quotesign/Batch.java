package example.quotesign;

import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.function.LongFunction;
import quotesign.v1.QuoteSigning.SignQuotesResponse;

/** Quotes that go over one stream after the other until each is signed or refused for good. */
final class Batch {
    /** One of them. Once its bytes were sent they stay, unless the number did not fit. */
    private static final class Quote {
        final long tag;
        final LongFunction<byte[]> of;
        long number;
        byte[] payload;
        int attempts;
        int renumbered;
        Sequence.Outcome outcome;

        Quote(long tag, LongFunction<byte[]> of) {
            this.tag = tag;
            this.of = of;
        }
    }

    private final Gateway gateway;
    private final Sequence sequence;
    private final long end;
    private final String id = UUID.randomUUID().toString();
    private final List<Quote> all = new ArrayList<>();
    private final List<Quote> open = new ArrayList<>();

    Batch(Gateway gateway, Sequence sequence, List<LongFunction<byte[]>> quotes, long end) {
        this.gateway = gateway;
        this.sequence = sequence;
        this.end = end;
        quotes.forEach(of -> all.add(new Quote(all.size(), of)));
        open.addAll(all);
    }

    List<Sequence.Outcome> issue() {
        try {
            sequence.take(end);
            try {
                send();
            } finally {
                sequence.give();
            }
        } catch (Refused late) {
            open.forEach(quote -> refuse(quote, late));
        } catch (InterruptedException interrupted) {
            open.forEach(quote -> refuse(quote, unanswered("interrupted")));
            Thread.currentThread().interrupt();
        }
        return all.stream().map(quote -> quote.outcome).toList();
    }

    private void send() throws InterruptedException {
        int inVain = 0;
        for (int stream = 1; ; stream++) {
            number();
            if (open.isEmpty()) {
                return;
            }
            var payloads = new LinkedHashMap<Long, byte[]>();
            for (Quote quote : open) {
                quote.attempts++;
                payloads.put(quote.tag, quote.payload);
            }
            long left = Math.max(end - System.nanoTime(), TimeUnit.SECONDS.toNanos(1));
            var streamed = gateway.signOverStream(payloads, left, id);
            var again = take(streamed.answers(), streamed.ended());
            // Where the gateway says when to come again, the deadline alone bounds it.
            boolean told = again.values().stream().anyMatch(refused -> refused.retryAfter != null);
            inVain = told || again.size() < payloads.size() ? 0 : inVain + 1;
            long wait = waitFor(again, inVain);
            open.removeIf(quote -> quote.outcome != null);
            note(stream, payloads.size(), streamed.ended(), wait / 1e9);
            TimeUnit.NANOSECONDS.sleep(wait);
        }
    }

    /** How long those wait that are sent again. Whose own wait is too long is given up, and no other with it. */
    private long waitFor(Map<Quote, Refused> again, int inVain) {
        long left = end - System.nanoTime();
        var stay = new LinkedHashMap<Quote, Refused>();
        again.forEach((quote, refused) -> {
            if (inVain == Gateway.ATTEMPTS_MAX || (refused.retryAfter != null && refused.retryAfter.toNanos() >= left)) {
                refuse(quote, refused);
            } else {
                stay.put(quote, refused);
            }
        });
        if (stay.isEmpty()) {
            return 0;
        }
        var told = stay.values().stream().map(refused -> refused.retryAfter).filter(after -> after != null);
        long wait = Gateway.pause(inVain + 1, told.max(Comparator.naturalOrder()).orElse(null));
        if (wait < left) {
            return wait;
        }
        stay.forEach(this::refuse);
        return 0;
    }

    /** Numbers what has no number: what has one goes first, as it was. */
    private void number() throws InterruptedException {
        Comparator<Quote> fresh = Comparator.comparing(quote -> quote.payload == null);
        open.sort(fresh.thenComparing(quote -> quote.number).thenComparing(quote -> quote.tag));
        long kept = 0;
        try {
            for (Quote quote : open) {
                if (quote.payload == null) {
                    make(quote, sequence.next(kept, Sequence.left(end)));
                } else {
                    kept = quote.number;
                }
            }
        } catch (Refused unknown) { // nobody says where the sequence stands, or the time is over
            open.stream().filter(quote -> quote.payload == null && quote.outcome == null).forEach(quote -> refuse(quote, unknown));
        }
        open.removeIf(quote -> quote.outcome != null);
    }

    private void make(Quote quote, long number) {
        try {
            quote.payload = quote.of.apply(number);
            quote.number = number;
        } catch (RuntimeException fault) {
            refuse(quote, new Refused(Refused.Action.MEND, Status.Code.INVALID_ARGUMENT, "the quote could not be made", fault));
        }
    }

    /** Takes the answers in. Those quotes that are to be sent again as they were, each with what was said of it. */
    private Map<Quote, Refused> take(Map<Long, SignQuotesResponse> answers, Refused ended) {
        var again = new LinkedHashMap<Quote, Refused>();
        for (Quote quote : open) {
            var answer = answers.get(quote.tag);
            if (answer != null && answer.hasSigned()) {
                quote.outcome = new Sequence.Outcome(new Gateway.Answer<>(answer.getSigned(), quote.attempts, id(quote)), null);
                continue;
            }
            var refused = answer != null ? refusal(answer) : ended != null ? ended : unanswered("the stream ended without an answer");
            boolean isOpen = answer == null && refused.action != Refused.Action.MEND && refused.action != Refused.Action.ASK;
            if (isOpen || refused.action == Refused.Action.RETRY) {
                // What is said of one quote alone is not said of this one, which may be signed.
                again.put(quote, refused);
            } else if (refused.action == Refused.Action.RENUMBER && quote.renumbered < Sequence.RENUMBERED_MAX) {
                quote.renumbered++;
                quote.payload = null;
                quote.number = 0;
                sequence.lost();
            } else {
                refuse(quote, refused);
                if (answer == null && refused.action == Refused.Action.MEND) {
                    // A message that the gateway could not take: that is the first one without an answer.
                    ended = unanswered("the stream ended with another's fault");
                }
            }
        }
        return again;
    }

    private static Refused refusal(SignQuotesResponse answer) {
        var said = answer.getRefused();
        var code = Status.fromCodeValue(said.getCode()).getCode();
        return new Refused(code, said.getMessage(), said.getDetailsList(), null, 0, "");
    }

    private static Refused unanswered(String message) {
        return new Refused(Refused.Action.RETRY, Status.Code.UNKNOWN, message, null);
    }

    private void refuse(Quote quote, Refused refused) {
        quote.outcome = new Sequence.Outcome(null, new Refused(refused, quote.attempts, id(quote)));
    }

    /** The correlation id of a quote: the stream's, a full stop, and its tag. */
    private String id(Quote quote) {
        return id + "." + quote.tag;
    }

    private void note(int stream, int sent, Refused ended, double wait) {
        var line = new LinkedHashMap<String, Object>();
        line.put("correlation_id", id);
        line.put("attempt", stream);
        line.putAll(Refused.said(ended));
        line.put("sent", sent);
        line.put("open", open.size());
        line.put("wait_s", wait);
        gateway.log.accept(line);
    }
}
