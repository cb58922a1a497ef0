package example.quotesign;

import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.LongFunction;
import quotesign.v1.QuoteSigning.SignQuoteResponse;

/** The numbers of one sequence, handed out in one place and sent in their order. */
public final class Sequence {
    static final int RENUMBERED_MAX = 3;

    /** What became of a quote: one of the two is there, the other is null. */
    public record Outcome(Gateway.Answer<SignQuoteResponse> signed, Refused refused) {}

    private final Gateway gateway;
    private final String partner;
    private final String corridor;
    private final ReentrantLock turn = new ReentrantLock(true);
    private Long last;

    /** Resumes with its first quote. The corridor is empty where the partner has one sequence. */
    public Sequence(Gateway gateway, String partner, String corridor) {
        this.gateway = gateway;
        this.partner = partner;
        this.corridor = corridor;
    }

    /** Takes up the sequence where the gateway says that it stands: at the start, and when a number did not fit. */
    public long resume(Duration deadline) throws Refused, InterruptedException {
        long end = System.nanoTime() + deadline.toNanos();
        take(end);
        try {
            last = gateway.lastNumber(partner, corridor, left(end));
            return last;
        } finally {
            give();
        }
    }

    /** Has it go on behind this number, as one would who has lost count. */
    void forget(long last) {
        turn.lock();
        this.last = last;
        give();
    }

    /** One caller at a time; none waits for that longer than it has time. */
    void take(long end) throws Refused, InterruptedException {
        if (!turn.tryLock(end - System.nanoTime(), TimeUnit.NANOSECONDS)) {
            throw late();
        }
    }

    void give() {
        turn.unlock();
    }

    /** The time that is left, before a number is taken. */
    static Duration left(long end) throws Refused {
        long left = end - System.nanoTime();
        if (left <= 0) {
            throw late();
        }
        return Duration.ofNanos(left);
    }

    private static Refused late() {
        return new Refused(Refused.Action.RETRY, Status.Code.DEADLINE_EXCEEDED, "the time was over before it was sent", null);
    }

    /** Has the bytes signed that {@code quote} makes of a number. One that did not fit bound nothing, so the quote gets another. */
    public Gateway.Answer<SignQuoteResponse> issue(LongFunction<byte[]> quote, Duration deadline)
            throws Refused, InterruptedException {
        long end = System.nanoTime() + deadline.toNanos();
        take(end);
        try {
            for (int renumbered = 0; ; renumbered++) {
                long number = next(0, left(end));
                try {
                    return gateway.sign(quote.apply(number), Duration.ofNanos(end - System.nanoTime()));
                } catch (Refused refused) {
                    if (refused.action != Refused.Action.RENUMBER || renumbered == RENUMBERED_MAX) {
                        throw refused;
                    }
                    lost();
                }
            }
        } finally {
            give();
        }
    }

    /**
     * Has many quotes signed over one stream, side by side: for each, in this order, what {@link #issue} would come to.
     * A quote is made again where its number did not fit: keep the bytes that it made last. Whoever is interrupted has the rest refused
     * with RETRY, and stays interrupted.
     */
    public List<Outcome> issueAll(List<LongFunction<byte[]>> quotes, Duration deadline) {
        return new Batch(gateway, this, quotes, System.nanoTime() + deadline.toNanos()).issue();
    }

    /** The next number, behind {@code kept} also where the sequence is resumed. */
    long next(long kept, Duration deadline) throws Refused, InterruptedException {
        if (last == null) {
            last = Math.max(resume(deadline), kept);
        }
        return ++last;
    }

    /** A number did not fit: the next one asks where the sequence stands. */
    void lost() {
        last = null;
    }
}
