package quotesign

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	pb "quotesign.example/clients/go/quotesignpb"
)

// Answer is what became of a quote: one of the two is there.
type Answer struct {
	Signed  *Signed
	Refused *Refused
}

// IssueAll has many quotes signed over one stream, side by side: for each, in this order, what [Sequence.Issue] would come to.
// A quote is made again where its number did not fit: keep the bytes that quote(number) made last.
func (s *Sequence) IssueAll(ctx context.Context, quotes []func(number uint64) []byte) ([]Answer, error) {
	end, bounded := ctx.Deadline()
	if !bounded {
		return nil, errors.New("a call needs a deadline")
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	b := batch{sequence: s, end: end, id: correlationID(), quotes: make([]quote, len(quotes))}
	for at, of := range quotes {
		b.quotes[at].of = of
		b.open = append(b.open, at)
	}
	b.issue(ctx)
	answers := make([]Answer, len(quotes))
	for at, quote := range b.quotes {
		answers[at] = quote.answer
	}
	return answers, nil
}

// quote is one of a batch. Once its bytes were sent they stay, unless the number did not fit.
type quote struct {
	of                   func(number uint64) []byte
	number               uint64
	payload              []byte
	attempts, renumbered int
	answer               Answer
}

func (q *quote) isAnswered() bool {
	return q.answer.Signed != nil || q.answer.Refused != nil
}

// batch is quotes that go over one stream after the other until each is signed or refused for good.
type batch struct {
	sequence *Sequence
	end      time.Time
	id       string
	quotes   []quote
	open     []int
}

func (b *batch) issue(ctx context.Context) {
	for stream, inVain := 1, 0; ; stream++ {
		b.number(ctx)
		if len(b.open) == 0 {
			return
		}
		sent := slices.Clone(b.open)
		for _, at := range sent {
			b.quotes[at].attempts++
		}
		answers, ended := b.send(ctx, sent)
		again := b.take(answers, ended)
		inVain++
		if len(again) < len(sent) {
			inVain = 0
		}
		wait := b.wait(again, inVain)
		line := []any{"correlation_id", b.id, "attempt", stream, "sent", len(sent), "open", len(b.open), "wait_s", wait.Seconds()}
		if ended != nil {
			line = append(line, "code", ended.Code.String(), "reason", ended.Reason)
		}
		b.sequence.gateway.log.Info("stream", line...)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			for at, refused := range again {
				if !b.quotes[at].isAnswered() {
					b.refuse(at, refused)
				}
			}
		}
	}
}

// wait is how long those wait that are sent again. Whose own wait is too long is given up, and no other with it.
func (b *batch) wait(again map[int]*Refused, inVain int) time.Duration {
	left := time.Until(b.end)
	stay := map[int]*Refused{}
	for at, refused := range again {
		if inVain == attemptsMax || (refused.RetryAfter != nil && *refused.RetryAfter >= left) {
			b.refuse(at, refused)
		} else {
			stay[at] = refused
		}
	}
	if len(stay) == 0 {
		return 0
	}
	wait := pause(inVain+1, longest(stay))
	if wait < left {
		return wait
	}
	for at, refused := range stay {
		b.refuse(at, refused)
	}
	return 0
}

// number numbers what has no number: what has one goes first, as it was.
func (b *batch) number(ctx context.Context) {
	slices.SortFunc(b.open, func(one, other int) int {
		// Without a number behind all that have one.
		return cmp.Or(cmp.Compare(b.quotes[one].number-1, b.quotes[other].number-1), one-other)
	})
	kept := uint64(0)
	for _, at := range slices.Clone(b.open) {
		quote := &b.quotes[at]
		if quote.number != 0 {
			kept = max(kept, quote.number)
			continue
		}
		if b.sequence.last == nil {
			if err := b.sequence.resume(ctx); err != nil {
				b.unknown(err)
				return
			}
			*b.sequence.last = max(*b.sequence.last, kept)
		}
		*b.sequence.last++
		quote.number = *b.sequence.last
		quote.payload = quote.of(quote.number)
	}
}

// unknown refuses what has no number, since nobody says where the sequence stands.
func (b *batch) unknown(err error) {
	var refused *Refused
	if !errors.As(err, &refused) {
		refused = refusal(err)
	}
	for _, at := range slices.Clone(b.open) {
		if b.quotes[at].number == 0 {
			b.refuse(at, refused)
		}
	}
}

// send gives what came back for each quote, and how the stream ended where not well: what has no answer then may be signed or not.
func (b *batch) send(ctx context.Context, sent []int) (map[int]Answer, *Refused) {
	// It ends with the answers: the sender below is not left behind.
	ctx, cancel := context.WithTimeout(ctx, streamMax)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-correlation-id", b.id)
	gateway, answers := b.sequence.gateway, map[int]Answer{}
	// The config's waiting and sending again are for single calls.
	stream, err := gateway.client.SignQuotes(ctx, grpc.WaitForReady(true))
	if err != nil {
		return answers, refusal(err)
	}
	requests := make([]*pb.SignQuotesRequest, len(sent))
	for at, index := range sent {
		quote := &pb.SignQuoteRequest{Environment: gateway.environment, Payload: b.quotes[index].payload}
		requests[at] = &pb.SignQuotesRequest{Tag: uint64(index), Quote: quote}
	}
	go func() {
		for _, request := range requests {
			if stream.Send(request) != nil {
				return // receiving says why
			}
		}
		_ = stream.CloseSend()
	}()
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return answers, nil
		}
		if err != nil {
			return answers, refusal(err)
		}
		if !slices.Contains(sent, int(answer.Tag)) || answers[int(answer.Tag)].Signed != nil {
			continue
		}
		if signed := answer.GetSigned(); signed != nil {
			answers[int(answer.Tag)] = Answer{Signed: &Signed{JWS: signed.Jws, Kid: signed.Kid, Sequence: signed.Sequence, Replayed: signed.Replayed}}
		} else if refused := answer.GetRefused(); refused != nil {
			told := &status.Status{Code: refused.Code, Message: refused.Message, Details: refused.Details}
			if codes.Code(told.Code) == codes.OK {
				told.Code = int32(codes.Unknown)
			}
			answers[int(answer.Tag)] = Answer{Refused: refusal(grpcstatus.ErrorProto(told))}
		}
	}
}

// take takes the answers in. It gives those quotes that are to be sent again as they were, each with what was said of it.
func (b *batch) take(answers map[int]Answer, ended *Refused) map[int]*Refused {
	again := map[int]*Refused{}
	for _, at := range slices.Clone(b.open) {
		answer, quote := answers[at], &b.quotes[at]
		if answer.Signed != nil {
			answer.Signed.Attempts, answer.Signed.CorrelationID = quote.attempts, b.idOf(at)
			b.close(at, answer)
			continue
		}
		refused := answer.Refused
		if refused == nil {
			refused = ended
		}
		if refused == nil {
			refused = &Refused{Code: codes.Unknown, Message: "the stream ended without an answer", Action: Retry}
		}
		if answer.Refused == nil && (refused.Action == Renumber || refused.Action == Reissue) {
			// That is said of one quote, and this one may be signed.
			open := *refused
			open.Action, refused = Retry, &open
		}
		switch {
		case refused.Action == Retry:
			again[at] = refused
		case refused.Action == Renumber && quote.renumbered < renumberMax:
			quote.renumbered++
			quote.number, quote.payload, b.sequence.last = 0, nil, nil
		default:
			b.refuse(at, refused)
			if answer.Refused == nil && refused.Action == Mend {
				// A message that the gateway could not take: that is the first one without an answer.
				ended = &Refused{Code: codes.Unknown, Message: "the stream ended with another's fault", Action: Retry}
			}
		}
	}
	return again
}

func (b *batch) refuse(at int, refused *Refused) {
	own := *refused
	own.Attempts, own.CorrelationID = b.quotes[at].attempts, b.idOf(at)
	b.close(at, Answer{Refused: &own})
}

func (b *batch) close(at int, answer Answer) {
	b.quotes[at].answer = answer
	b.open = slices.DeleteFunc(b.open, func(other int) bool { return other == at })
}

// idOf is the correlation id of a quote: the stream's, a full stop, and its tag.
func (b *batch) idOf(at int) string {
	return b.id + "." + strconv.Itoa(at)
}

// longest is the longest wait that was asked for.
func longest(again map[int]*Refused) (most *time.Duration) {
	for _, refused := range again {
		if after := refused.RetryAfter; after != nil && (most == nil || *after > *most) {
			most = after
		}
	}
	return most
}
