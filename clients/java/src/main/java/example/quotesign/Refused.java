package example.quotesign;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.QuotaFailure;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** The quote was not signed. Where its action is RETRY, time ran out. */
public final class Refused extends Exception {
    /** What a refusal asks for; docs/clients.md has the table. */
    public enum Action {
        /** The same bytes may be sent again. */
        RETRY(
                "RATE_LIMITED",
                "OVERLOADED",
                "SIGNER_UNAVAILABLE",
                "LEDGER_UNAVAILABLE",
                "CLOCK_UNTRUSTED",
                "AUDIT_LAG",
                "SIGNING_HALTED",
                "STREAM_ENDED",
                "DEADLINE_EXCEEDED",
                "INTERNAL"),
        /** Ask where the sequence stands and give the quote another number. */
        RENUMBER("SEQUENCE_NOT_MONOTONIC"),
        /** Price again: a new quote with a new id and number. */
        REISSUE("QUOTE_EXPIRED", "KEY_REVOKED"),
        /** A mistake in this service. */
        MEND("INVALID_REQUEST", "MALFORMED_JSON", "SCHEMA_VIOLATION", "QUOTE_CONFLICT"),
        /** Nothing that a program can do about it. */
        ASK(
                "CALLER_UNIDENTIFIED",
                "CALLER_SUSPENDED",
                "POLICY_DENIED",
                "NO_ACTIVE_KEY",
                "SEQUENCE_SCOPE_UNKNOWN",
                "SIGNATURE_MISMATCH",
                "ENVIRONMENT_MISMATCH",
                "NOT_FOUND");

        private final Set<String> reasons;

        Action(String... reasons) {
            this.reasons = Set.of(reasons);
        }
    }

    private static final String DOMAIN = "quotesign.v1";
    private static final Duration RETRY_AFTER_MAX = Duration.ofDays(1);

    /** Without a reason nobody knows whether the gateway got the quote; that is no answer, and the same bytes are sent again. */
    private static final Set<Status.Code> NO_ANSWER = EnumSet.of(
            Status.Code.UNAVAILABLE,
            Status.Code.DEADLINE_EXCEEDED,
            Status.Code.CANCELLED,
            Status.Code.INTERNAL,
            Status.Code.UNKNOWN);

    public final Status.Code code;
    public final String reason;
    public final Action action;
    /** Null where the gateway does not say it. */
    public final Duration retryAfter;
    public final List<String> violations;
    public final List<String> quotas;
    public final Map<String, String> metadata;
    public final int attempts;
    public final String correlationId;

    /** Reads an error of gRPC. */
    static Refused of(StatusRuntimeException error, int attempts, String correlationId) {
        List<Any> details = List.of();
        try {
            var status = StatusProto.fromThrowable(error);
            details = status == null ? details : status.getDetailsList();
        } catch (RuntimeException unreadable) {
            error.addSuppressed(unreadable); // what cannot be read says nothing
        }
        var code = error.getStatus().getCode();
        return new Refused(code, error.getStatus().getDescription(), details, error, attempts, correlationId);
    }

    /** Reads a status: the reason is what counts, the code only where there is none. */
    Refused(Status.Code code, String message, List<Any> details, Throwable cause, int attempts, String correlationId) {
        super(message, cause);
        this.code = code;
        this.attempts = attempts;
        this.correlationId = correlationId;
        String reason = "";
        Duration retryAfter = null;
        List<String> violations = List.of();
        List<String> quotas = List.of();
        Map<String, String> metadata = Map.of();
        try {
            for (Any detail : details) {
                if (detail.is(ErrorInfo.class)) {
                    ErrorInfo info = detail.unpack(ErrorInfo.class);
                    if (info.getDomain().equals(DOMAIN)) {
                        reason = info.getReason();
                        metadata = info.getMetadataMap();
                    }
                } else if (detail.is(RetryInfo.class)) {
                    var delay = detail.unpack(RetryInfo.class).getRetryDelay();
                    long seconds = Math.min(Math.max(delay.getSeconds(), 0), RETRY_AFTER_MAX.toSeconds());
                    var told = Duration.ofSeconds(seconds, Math.max(delay.getNanos(), 0));
                    retryAfter = told.compareTo(RETRY_AFTER_MAX) < 0 ? told : RETRY_AFTER_MAX;
                } else if (detail.is(BadRequest.class)) {
                    violations = detail.unpack(BadRequest.class).getFieldViolationsList().stream()
                            .map(BadRequest.FieldViolation::getField)
                            .toList();
                } else if (detail.is(QuotaFailure.class)) {
                    quotas = detail.unpack(QuotaFailure.class).getViolationsList().stream()
                            .map(QuotaFailure.Violation::getSubject)
                            .toList();
                }
            }
        } catch (InvalidProtocolBufferException unreadable) {
            addSuppressed(unreadable);
        }
        this.reason = reason;
        this.retryAfter = retryAfter;
        this.violations = violations;
        this.quotas = quotas;
        this.metadata = metadata;
        this.action = action();
    }

    /** What this side says, without a word of the gateway. */
    Refused(Action action, Status.Code code, String message, Throwable cause) {
        super(message, cause);
        this.action = action;
        this.code = code;
        reason = "";
        retryAfter = null;
        violations = List.of();
        quotas = List.of();
        metadata = Map.of();
        attempts = 0;
        correlationId = "";
    }

    /** The same, of one quote of a stream. */
    Refused(Refused said, int attempts, String correlationId) {
        super(said.getMessage(), said);
        code = said.code;
        reason = said.reason;
        action = said.action;
        retryAfter = said.retryAfter;
        violations = said.violations;
        quotas = said.quotas;
        metadata = said.metadata;
        this.attempts = attempts;
        this.correlationId = correlationId;
    }

    /** What the log tells of it; without a reason, the message alone says why, such as that no connection came about. */
    static Map<String, Object> said(Refused refused) {
        if (refused == null) {
            return Map.of("code", Status.Code.OK.name());
        }
        var line = new LinkedHashMap<String, Object>();
        line.put("code", refused.code.name());
        line.put("reason", refused.reason);
        if (refused.reason.isEmpty()) {
            line.put("message", refused.getMessage());
        }
        return line;
    }

    private Action action() {
        for (Action action : Action.values()) {
            if (action.reasons.contains(reason)) {
                return action;
            }
        }
        if (reason.isEmpty()) {
            return NO_ANSWER.contains(code) ? Action.RETRY : Action.ASK;
        }
        // A reason of a later gateway: RetryInfo says that the same quote may be sent again.
        return retryAfter == null ? Action.ASK : Action.RETRY;
    }
}
