// The command shows package quotesign at work against a gateway: one JSON line per step. README.md says how to run it.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"quotesign.example/clients/go/quotesign"
)

type claims = map[string]any

type scenario struct {
	gateway  *quotesign.Gateway
	sequence *quotesign.Sequence
	verifier *quotesign.Verifier
	template claims
	count    int
	deadline time.Duration
	// The bytes of the quote made last, and of the one signed first: a service keeps them with its quote.
	sent, kept []byte
	signed     *quotesign.Signed
}

func main() {
	var options quotesign.Options
	flag.StringVar(&options.Address, "address", "", "host:port of the gateway's grpc listener")
	flag.StringVar(&options.CA, "ca", "", "the CA of the gateway, PEM")
	flag.StringVar(&options.Certificate, "cert", "", "our certificate, PEM")
	flag.StringVar(&options.Key, "key", "", "its private key, PEM")
	flag.StringVar(&options.Environment, "environment", "development", "the gateway's environment")
	jwks := flag.String("jwks", "", "the https URL of the partner's key set")
	payload := flag.String("payload", "", "the quote to begin from, such as examples/quote.json")
	config := flag.String("service-config", "../service-config.json", "the gRPC service config")
	steps := flag.String("steps", "resume,sign,replay,conflict,schema,sequence,denied,expired,verify", "these, burst, crowd and stream")
	count := flag.Int("count", 10, "how many quotes a burst, a crowd or a stream has")
	deadline := flag.Float64("deadline", 30, "seconds for a quote or a stream, retries and all")
	flag.Parse()
	options.ServiceConfig = string(read(*config))
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))

	s := scenario{count: *count, deadline: time.Duration(*deadline * float64(time.Second))}
	must(json.Unmarshal(read(*payload), &s.template))
	var err error
	s.gateway, err = quotesign.Dial(options)
	must(err)
	defer s.gateway.Close()
	s.sequence = quotesign.NewSequence(s.gateway, s.template["partner_id"].(string), "")
	s.verifier, err = quotesign.NewVerifier(*jwks, options.CA)
	must(err)
	known := map[string]func(){
		"resume": s.resume, "sign": s.sign, "replay": s.replay, "conflict": s.conflict, "schema": s.schema,
		"sequence": s.tooLow, "denied": s.denied, "expired": s.expired, "verify": s.verify, "burst": s.burst,
		"crowd": s.crowd, "stream": s.stream,
	}
	for _, step := range strings.Split(*steps, ",") {
		run, is := known[step]
		if !is {
			log.Fatalf("no such step: %s", step)
		}
		run()
	}
}

// quote makes a quote of the template: a function from its number to its bytes.
func (s *scenario) quote(changes claims) func(uint64) []byte {
	quote := maps.Clone(s.template)
	quote["quote_id"] = rand128()
	quote["issued_at"], quote["expires_at"] = in(0), in(10*time.Minute)
	maps.Copy(quote, changes)
	return func(number uint64) []byte {
		quote["quote_sequence"] = number
		s.sent = encoded(quote)
		return s.sent
	}
}

// tryTo prints what a call came to.
func (s *scenario) tryTo(step string, call func(context.Context) (*quotesign.Signed, error)) *quotesign.Signed {
	answer := cameTo(s.deadline, call)
	tellAnswer(step, answer)
	return answer.Signed
}

func cameTo(deadline time.Duration, call func(context.Context) (*quotesign.Signed, error)) quotesign.Answer {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	signed, err := call(ctx)
	var refused *quotesign.Refused
	if !errors.As(err, &refused) {
		must(err)
	}
	return quotesign.Answer{Signed: signed, Refused: refused}
}

func tellAnswer(step string, answer quotesign.Answer) {
	if refused := answer.Refused; refused != nil {
		tell(step, claims{
			"code": name(refused.Code), "reason": refused.Reason, "action": refused.Action, "attempts": refused.Attempts,
			"correlation_id": refused.CorrelationID, "violations": refused.Violations, "quotas": refused.Quotas,
		})
		return
	}
	signed := answer.Signed
	digest := sha256.Sum256([]byte(signed.JWS))
	tell(step, claims{
		"sequence": signed.Sequence, "kid": signed.Kid, "replayed": signed.Replayed, "attempts": signed.Attempts,
		"correlation_id": signed.CorrelationID, "jws_sha256": hex.EncodeToString(digest[:]),
	})
}

func (s *scenario) issue(step string, changes claims) *quotesign.Signed {
	return s.tryTo(step, func(ctx context.Context) (*quotesign.Signed, error) {
		return s.sequence.Issue(ctx, s.quote(changes))
	})
}

func (s *scenario) send(step string, payload []byte) {
	s.tryTo(step, func(ctx context.Context) (*quotesign.Signed, error) { return s.gateway.Sign(ctx, payload) })
}

func (s *scenario) resume() {
	ctx, cancel := context.WithTimeout(context.Background(), s.deadline)
	defer cancel()
	last, err := s.sequence.Resume(ctx)
	must(err)
	tell("resume", claims{"last": last})
}

func (s *scenario) sign() {
	s.signed = s.issue("sign", nil)
	s.kept = s.sent
}

func (s *scenario) replay() {
	s.send("replay", s.kept)
}

func (s *scenario) conflict() {
	var other claims
	must(json.Unmarshal(s.kept, &other))
	other["subscription_id"] = "sub_other"
	s.send("conflict", encoded(other))
}

func (s *scenario) schema() {
	s.issue("schema", claims{"corridor": "gb-in", "total_customer_cost": "1.00"})
}

func (s *scenario) tooLow() {
	s.send("sequence", s.quote(nil)(s.signed.Sequence))
	// One who has lost count: the first number is refused, the next one fits.
	s.sequence.Forget(s.signed.Sequence - 1)
	s.issue("sequence-resumed", nil)
}

func (s *scenario) denied() {
	s.issue("denied", claims{"corridor": "GB-KP"})
}

func (s *scenario) expired() {
	s.issue("expired", claims{"issued_at": in(-5 * time.Minute), "expires_at": in(-time.Second)})
}

func (s *scenario) verify() {
	parts := strings.Split(s.signed.JWS, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	must(err)
	cheaper := bytes.Replace(payload, []byte(`"partner_fee":"1.`), []byte(`"partner_fee":"0.`), 1)
	changed := strings.Join([]string{parts[0], base64.RawURLEncoding.EncodeToString(cheaper), parts[2]}, ".")
	for _, try := range []struct {
		step, jws string
		now       time.Time
	}{
		{"verify", s.signed.JWS, time.Now()},
		{"verify-changed", changed, time.Now()},
		{"verify-expired", s.signed.JWS, time.Now().Add(time.Hour)},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), s.deadline)
		quote, err := s.verifier.Verify(ctx, try.jws, try.now)
		cancel()
		switch {
		case errors.Is(err, quotesign.ErrKeysUnavailable):
			tell(try.step, claims{"keys_unavailable": err.Error()})
		case err != nil:
			tell(try.step, claims{"valid": false, "why": err.Error()})
		default:
			tell(try.step, claims{"valid": true, "quote_id": quote["quote_id"]})
		}
	}
}

func (s *scenario) burst() {
	for range s.count {
		s.issue("burst", nil)
	}
}

func (s *scenario) crowd() {
	answers := make([]quotesign.Answer, s.count)
	var crowd sync.WaitGroup
	for at, deadline := 0, s.deadline; at < s.count; at, deadline = at+1, s.deadline/2 {
		crowd.Add(1)
		go func() {
			defer crowd.Done()
			answers[at] = cameTo(deadline, func(ctx context.Context) (*quotesign.Signed, error) {
				return s.sequence.Issue(ctx, s.quote(nil))
			})
		}()
		if at == 0 {
			time.Sleep(500 * time.Millisecond)
		}
	}
	crowd.Wait()
	for _, answer := range answers {
		tellAnswer("crowd", answer)
	}
}

func (s *scenario) stream() {
	ctx, cancel := context.WithTimeout(context.Background(), s.deadline)
	defer cancel()
	quotes := make([]func(uint64) []byte, s.count)
	for at := range quotes {
		quotes[at] = s.quote(nil)
	}
	answers, err := s.sequence.IssueAll(ctx, quotes)
	must(err)
	for _, answer := range answers {
		tellAnswer("stream", answer)
	}
}

// name is the code as the protocol spells it.
func name(code codes.Code) string {
	var name strings.Builder
	for at, letter := range code.String() {
		if at > 0 && letter >= 'A' && letter <= 'Z' {
			name.WriteByte('_')
		}
		name.WriteRune(letter)
	}
	return strings.ToUpper(name.String())
}

func tell(step string, facts claims) {
	facts["step"] = step
	fmt.Println(string(encoded(facts)))
}

func in(from time.Duration) string {
	return time.Now().UTC().Add(from).Format("2006-01-02T15:04:05Z")
}

func rand128() string {
	var id [16]byte
	_, err := rand.Read(id[:])
	must(err)
	return hex.EncodeToString(id[:])
}

func encoded(value any) []byte {
	text, err := json.Marshal(value)
	must(err)
	return text
}

func read(file string) []byte {
	text, err := os.ReadFile(file)
	must(err)
	return text
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
