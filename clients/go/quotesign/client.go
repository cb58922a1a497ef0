// Package quotesign has quotes signed by a quotesign gateway, and verifies signed ones.
//
// It is made to be taken over into a pricing service. [Gateway.Sign] sends one quote until it is signed, refused for good, or
// out of time; [Sequence.Issue] numbers quotes and has them signed, [Sequence.IssueAll] many at once over a stream; [Verifier]
// checks a JWS as the operator would. It needs grpc, go-jose and what protoc makes of proto/quotesign/v1. What each refusal asks
// for is in docs/clients.md.
package quotesign

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "quotesign.example/clients/go/quotesignpb"
)

const domain = "quotesign.v1"

// Action is what a refusal asks for.
type Action string

const (
	// Retry: the same bytes may be sent again.
	Retry Action = "retry"
	// Renumber: ask where the sequence stands and give the quote another number.
	Renumber Action = "renumber"
	// Reissue: price again; a new quote with a new id and number.
	Reissue Action = "reissue"
	// Mend: a mistake in this service.
	Mend Action = "mend"
	// Ask: nothing that a program can do about it.
	Ask Action = "ask"
)

var actions = map[string]Action{
	"RATE_LIMITED":       Retry,
	"OVERLOADED":         Retry,
	"SIGNER_UNAVAILABLE": Retry,
	"LEDGER_UNAVAILABLE": Retry,
	"CLOCK_UNTRUSTED":    Retry,
	"AUDIT_LAG":          Retry,
	"SIGNING_HALTED":     Retry,
	"STREAM_ENDED":       Retry,
	"DEADLINE_EXCEEDED":  Retry,
	"INTERNAL":           Retry,

	"SEQUENCE_NOT_MONOTONIC": Renumber,

	"QUOTE_EXPIRED": Reissue,
	"KEY_REVOKED":   Reissue,

	"INVALID_REQUEST":  Mend,
	"MALFORMED_JSON":   Mend,
	"SCHEMA_VIOLATION": Mend,
	"QUOTE_CONFLICT":   Mend,

	"CALLER_UNIDENTIFIED":    Ask,
	"CALLER_SUSPENDED":       Ask,
	"POLICY_DENIED":          Ask,
	"NO_ACTIVE_KEY":          Ask,
	"SEQUENCE_SCOPE_UNKNOWN": Ask,
	"SIGNATURE_MISMATCH":     Ask,
	"ENVIRONMENT_MISMATCH":   Ask,
	"NOT_FOUND":              Ask,
}

const (
	attemptsMax  = 8
	attempt      = 5 * time.Second
	backoffFirst = 200 * time.Millisecond
	backoffMax   = 5 * time.Second
	renumberMax  = 3
	// No stream is kept longer: one that stands still must not hold up the rest for ever.
	streamMax     = 15 * time.Second
	retryAfterMax = 24 * time.Hour
)

// Refused says why a quote was not signed. Where its Action is Retry, time ran out.
type Refused struct {
	Code          codes.Code
	Reason        string
	Message       string
	Action        Action
	RetryAfter    *time.Duration
	Violations    []string
	Quotas        []string
	Metadata      map[string]string
	Attempts      int
	CorrelationID string
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%s %s: %s (%s)", r.Code, r.Reason, r.Message, r.CorrelationID)
}

// refusal reads an error of gRPC: the reason is what counts, the code only where there is none.
func refusal(err error) *Refused {
	status := status.Convert(err)
	refused := &Refused{Code: status.Code(), Message: status.Message()}
	for _, detail := range status.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == domain {
				refused.Reason, refused.Metadata = detail.Reason, detail.Metadata
			}
		case *errdetails.RetryInfo:
			delay := min(max(detail.RetryDelay.AsDuration(), 0), retryAfterMax)
			refused.RetryAfter = &delay
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				refused.Violations = append(refused.Violations, violation.Field)
			}
		case *errdetails.QuotaFailure:
			for _, violation := range detail.Violations {
				refused.Quotas = append(refused.Quotas, violation.Subject)
			}
		}
	}
	refused.Action = refused.action()
	return refused
}

// said is what the log tells of it; without a reason, the message alone says why, such as that no connection came about.
func (r *Refused) said() []any {
	if r == nil {
		return []any{"code", codes.OK.String()}
	}
	line := []any{"code", r.Code.String(), "reason", r.Reason}
	if r.Reason == "" {
		line = append(line, "message", r.Message)
	}
	return line
}

func (r *Refused) action() Action {
	if action, known := actions[r.Reason]; known {
		return action
	}
	if r.Reason == "" {
		// Nobody knows whether the gateway got the quote: that is no answer, and the same bytes are sent again.
		switch r.Code {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Unknown:
			return Retry
		}
		return Ask
	}
	// A reason of a later gateway: RetryInfo says that the same quote may be sent again.
	if r.RetryAfter != nil {
		return Retry
	}
	return Ask
}

// Signed is a signed quote.
type Signed struct {
	JWS           string
	Kid           string
	Sequence      uint64
	Replayed      bool
	Attempts      int
	CorrelationID string
}

// Options say where a gateway is and who calls it. Certificates and keys are PEM files.
type Options struct {
	Address, CA, Certificate, Key string
	// The text of clients/service-config.json.
	ServiceConfig string
	Environment   string
	// slog's default where it is nil.
	Log *slog.Logger
}

// Gateway is a connection to a gateway over mutual TLS. It may be shared.
type Gateway struct {
	connection  *grpc.ClientConn
	client      pb.QuoteSigningServiceClient
	environment string
	log         *slog.Logger
}

// Dial makes the connection ready; it is opened with the first call.
func Dial(options Options) (*Gateway, error) {
	ca, err := pool(options.CA)
	if err != nil {
		return nil, err
	}
	// The certificate that is on disk now, for each connection.
	identity := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(options.Certificate, options.Key)
		return &pair, err
	}
	if _, err := identity(nil); err != nil {
		return nil, err
	}
	if options.Log == nil {
		options.Log = slog.Default()
	}
	config := &tls.Config{RootCAs: ca, GetClientCertificate: identity, MinVersion: tls.VersionTLS13}
	connection, err := grpc.NewClient(
		options.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultServiceConfig(options.ServiceConfig),
		// A gateway that was restarted is found again soon, and a connection that died is noticed while a quote has time left.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	)
	if err != nil {
		return nil, err
	}
	return &Gateway{connection, pb.NewQuoteSigningServiceClient(connection), options.Environment, options.Log}, nil
}

// Close ends the connection.
func (g *Gateway) Close() error {
	return g.connection.Close()
}

// Sign has these bytes signed, until the context's deadline. Whatever happens, no others are sent, so that the answer is always
// the same JWS.
func (g *Gateway) Sign(ctx context.Context, payload []byte) (*Signed, error) {
	var answer *pb.SignQuoteResponse
	request := &pb.SignQuoteRequest{Environment: g.environment, Payload: payload}
	attempts, id, err := g.call(ctx, expiry(payload), func(ctx context.Context) (err error) {
		answer, err = g.client.SignQuote(ctx, request)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Signed{answer.Jws, answer.Kid, answer.Sequence, answer.Replayed, attempts, id}, nil
}

// LastNumber tells the last number taken in a sequence.
func (g *Gateway) LastNumber(ctx context.Context, partner, corridor string) (uint64, error) {
	var answer *pb.GetSequenceResponse
	request := &pb.GetSequenceRequest{Partner: partner, Corridor: corridor}
	_, _, err := g.call(ctx, nil, func(ctx context.Context) (err error) {
		answer, err = g.client.GetSequence(ctx, request)
		return err
	})
	return answer.GetLast(), err
}

// call makes a call until it is answered, refused for good, out of attempts or out of time. A quote that has expired is of no
// use to anybody; it is sent once all the same, for the gateway to say so.
func (g *Gateway) call(ctx context.Context, expires *time.Time, once func(context.Context) error) (int, string, error) {
	end, bounded := ctx.Deadline()
	if expires != nil && (!bounded || expires.Before(end)) {
		end, bounded = *expires, true
	}
	if !bounded {
		return 0, "", errors.New("a call needs a deadline")
	}
	id := correlationID()
	outgoing := metadata.AppendToOutgoingContext(ctx, "x-correlation-id", id)
	for tried := 1; ; tried++ {
		left := min(time.Until(end), attempt)
		if tried == 1 {
			left = max(left, time.Second)
		}
		bounded, cancel := context.WithTimeout(outgoing, left)
		err := once(bounded)
		cancel()
		if err == nil {
			g.log.Info("call", "correlation_id", id, "attempt", tried, "code", "OK")
			return tried, id, nil
		}
		refused := refusal(err)
		refused.Attempts, refused.CorrelationID = tried, id
		wait := pause(tried, refused.RetryAfter)
		again := refused.Action == Retry && tried < attemptsMax && time.Now().Add(wait).Before(end) && ctx.Err() == nil
		line := append([]any{"correlation_id", id, "attempt", tried, "action", refused.Action}, refused.said()...)
		if !again {
			g.log.Warn("call", line...)
			return tried, id, refused
		}
		g.log.Warn("call", append(line, "wait_s", wait.Seconds())...)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return tried, id, refused
		}
	}
}

// pause is as RetryInfo says and a little more, so that not all come back at once; else it backs off with full jitter.
func pause(tried int, retryAfter *time.Duration) time.Duration {
	if retryAfter != nil {
		return *retryAfter + time.Duration(mrand.Float64()*0.2*float64(*retryAfter))
	}
	return time.Duration(mrand.Float64() * float64(min(backoffMax, backoffFirst<<tried)))
}

// expiry is when the quote expires; nothing where it does not say so: then the gateway says what is wrong with it.
func expiry(payload []byte) *time.Time {
	var quote struct {
		ExpiresAt time.Time `json:"expires_at"`
	}
	if json.Unmarshal(payload, &quote) != nil || quote.ExpiresAt.IsZero() {
		return nil
	}
	return &quote.ExpiresAt
}

func correlationID() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// turn is a lock; none waits for it longer than it has time.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return late(ctx)
	}
}

func (t turn) give() {
	<-t
}

// late refuses what has no time left, before a number is taken.
func late(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return refusal(status.FromContextError(ctx.Err()).Err())
}

// Sequence hands out the numbers of one sequence in one place, and sends them in their order.
type Sequence struct {
	gateway           *Gateway
	partner, corridor string
	turn              turn
	last              *uint64
}

// NewSequence is a sequence that resumes with its first quote. The corridor is empty where the partner has one sequence.
func NewSequence(gateway *Gateway, partner, corridor string) *Sequence {
	return &Sequence{gateway: gateway, partner: partner, corridor: corridor, turn: make(turn, 1)}
}

// Resume takes up the sequence where the gateway says that it stands: at the start, and when a number did not fit.
func (s *Sequence) Resume(ctx context.Context) (uint64, error) {
	if err := s.turn.take(ctx); err != nil {
		return 0, err
	}
	defer s.turn.give()
	err := s.resume(ctx)
	if err != nil {
		return 0, err
	}
	return *s.last, nil
}

func (s *Sequence) resume(ctx context.Context) error {
	last, err := s.gateway.LastNumber(ctx, s.partner, s.corridor)
	if err != nil {
		return err
	}
	s.last = &last
	return nil
}

// Forget has the sequence go on behind this number, as one would who has lost count.
func (s *Sequence) Forget(last uint64) {
	s.turn <- struct{}{}
	defer s.turn.give()
	s.last = &last
}

// Issue has the bytes signed that quote(number) makes. A number that did not fit bound nothing, so the quote gets another.
func (s *Sequence) Issue(ctx context.Context, quote func(number uint64) []byte) (*Signed, error) {
	if err := s.turn.take(ctx); err != nil {
		return nil, err
	}
	defer s.turn.give()
	for renumbered := 0; ; renumbered++ {
		if err := late(ctx); err != nil {
			return nil, err
		}
		if s.last == nil {
			if err := s.resume(ctx); err != nil {
				return nil, err
			}
		}
		*s.last++
		signed, err := s.gateway.Sign(ctx, quote(*s.last))
		var refused *Refused
		if !errors.As(err, &refused) || refused.Action != Renumber || renumbered == renumberMax {
			return signed, err
		}
		s.last = nil
	}
}

// ErrKeysUnavailable says that the key set is not at hand, so nobody knows whether the JWS is a valid quote: try again.
var ErrKeysUnavailable = errors.New("the key set is not at hand")

// Verifier checks signed quotes with the partner's published keys, as whoever receives them does.
type Verifier struct {
	url    string
	client *http.Client
	lock   sync.Mutex
	// The fetch that brought the keys, and the last one, which may be under way.
	good, last *fetch
}

// fetch is one of the key set, from its beginning on.
type fetch struct {
	begun time.Time
	done  chan struct{}
	keys  jose.JSONWebKeySet
	err   error
}

const (
	keysLast     = 5 * time.Minute
	keysAgain    = 10 * time.Second
	keysFetch    = 5 * time.Second
	keysBytesMax = 1 << 20
)

// NewVerifier is a verifier with the key set at an https URL, whose certificate is held against the CA of a PEM file.
func NewVerifier(url, caFile string) (*Verifier, error) {
	ca, err := pool(caFile)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12}}
	refuse := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Verifier{url: url, client: &http.Client{Transport: transport, Timeout: keysFetch, CheckRedirect: refuse}}, nil
}

// Verify gives the claims, where the signature is RS256 of the key that the header's kid names and the quote has not expired. Any
// error but [ErrKeysUnavailable] says that the JWS is not a valid quote.
func (v *Verifier) Verify(ctx context.Context, jws string, now time.Time) (map[string]any, error) {
	// The algorithm is ours to say, never the header's.
	signed, err := jose.ParseSignedCompact(jws, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return nil, err
	}
	key, err := v.key(ctx, signed.Signatures[0].Header.KeyID)
	if err != nil {
		return nil, err
	}
	payload, err := signed.Verify(key)
	if err != nil {
		return nil, err
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, err
	}
	if expires := expiry(payload); expires == nil || !expires.After(now) {
		return nil, errors.New("the quote has expired")
	}
	return claims, nil
}

// key looks the kid up. The set is kept for a while, and fetched again where a kid is not in it, for keys are exchanged.
func (v *Verifier) key(ctx context.Context, kid string) (*jose.JSONWebKey, error) {
	if kid == "" {
		return nil, errors.New("the header names no kid")
	}
	if key := v.known(kid); key != nil {
		return key, nil
	}
	begun := time.Now()
	last := v.fetched()
	select {
	case <-last.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, ctx.Err())
	}
	if key := v.known(kid); key != nil {
		return key, nil
	}
	if last.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, last.err)
	}
	if last.begun.Before(begun) {
		return nil, fmt.Errorf("%w: a moment ago it had no key `%s`", ErrKeysUnavailable, kid)
	}
	return nil, fmt.Errorf("the key set has no key `%s`", kid)
}

func (v *Verifier) known(kid string) *jose.JSONWebKey {
	v.lock.Lock()
	defer v.lock.Unlock()
	if v.good == nil || time.Since(v.good.begun) > keysLast {
		return nil
	}
	if keys := v.good.keys.Key(kid); len(keys) == 1 {
		return &keys[0]
	}
	return nil
}

// fetched is a fetch of now: not one for every made-up kid, though, nor at once where one failed.
func (v *Verifier) fetched() *fetch {
	v.lock.Lock()
	defer v.lock.Unlock()
	if v.last == nil || time.Since(v.last.begun) > keysAgain {
		last := &fetch{begun: time.Now(), done: make(chan struct{})}
		v.last = last
		// Whoever began it may wait for it no longer than others do.
		go func() {
			defer close(last.done)
			if last.keys, last.err = v.get(); last.err == nil {
				v.lock.Lock()
				defer v.lock.Unlock()
				v.good = last
			}
		}()
	}
	return v.last
}

func (v *Verifier) get() (keys jose.JSONWebKeySet, err error) {
	answer, err := v.client.Get(v.url)
	if err != nil {
		return keys, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return keys, fmt.Errorf("the key set's answer is %s", answer.Status)
	}
	err = json.NewDecoder(io.LimitReader(answer.Body, keysBytesMax)).Decode(&keys)
	return keys, err
}

func pool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}
