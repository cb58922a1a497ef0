package quotesign

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
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
	b := batch{sequence: s, end: end, id: correlationID(), quotes: make([]quote, len(quotes))}
	for at, of := range quotes {
		b.quotes[at].of = of
	}
	if err := s.turn.take(ctx); err != nil {
		b.unknown(b.open(), err)
	} else {
		defer s.turn.give()
		b.issue(ctx)
	}
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

// batch is quotes that go over one stream after the other until each is signed or refused for good.
type batch struct {
	sequence *Sequence
	end      time.Time
	id       string
	quotes   []quote
}

// open is the quotes without an answer, in their order.
func (b *batch) open() (open []int) {
	for at := range b.quotes {
		if answer := b.quotes[at].answer; answer.Signed == nil && answer.Refused == nil {
			open = append(open, at)
		}
	}
	return open
}

func (b *batch) issue(ctx context.Context) {
	for stream, inVain := 1, 0; ; stream++ {
		sent := b.number(ctx)
		if len(sent) == 0 {
			return
		}
		for _, at := range sent {
			b.quotes[at].attempts++
		}
		answers, ended := b.send(ctx, sent)
		again := b.take(sent, answers, ended)
		inVain++
		// Where the gateway says when to come again, the deadline alone bounds it.
		if len(again) < len(sent) || longest(again) != nil {
			inVain = 0
		}
		wait := b.wait(again, inVain)
		line := []any{"correlation_id", b.id, "attempt", stream, "sent", len(sent), "open", len(b.open()), "wait_s", wait.Seconds()}
		b.sequence.gateway.log.Info("stream", append(line, ended.said()...)...)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			b.refuseAll(again)
		}
	}
}

// wait is how long those wait that are sent again. Whose own wait is too long is given up, and no other with it.
func (b *batch) wait(again map[int]*Refused, inVain int) time.Duration {
	left := time.Until(b.end)
	maps.DeleteFunc(again, func(at int, refused *Refused) bool {
		over := inVain == attemptsMax || (refused.RetryAfter != nil && *refused.RetryAfter >= left)
		if over {
			b.refuse(at, refused)
		}
		return over
	})
	if len(again) == 0 {
		return 0
	}
	wait := pause(inVain+1, longest(again))
	if wait < left {
		return wait
	}
	b.refuseAll(again)
	return 0
}

// number is what is to be sent, in its order. What has a number goes first, as it was; all others get one.
func (b *batch) number(ctx context.Context) []int {
	var order, fresh []int
	for _, at := range b.open() {
		if b.quotes[at].number != 0 {
			order = append(order, at)
		} else {
			fresh = append(fresh, at)
		}
	}
	slices.SortFunc(order, func(one, other int) int { return cmp.Compare(b.quotes[one].number, b.quotes[other].number) })
	for done, at := range fresh {
		if err := late(ctx); err != nil {
			b.unknown(fresh[done:], err)
			return order
		}
		if b.sequence.last == nil {
			if err := b.sequence.resume(ctx); err != nil {
				b.unknown(fresh[done:], err)
				return order
			}
			if len(order) > 0 {
				*b.sequence.last = max(*b.sequence.last, b.quotes[order[len(order)-1]].number)
			}
		}
		*b.sequence.last++
		quote := &b.quotes[at]
		quote.number = *b.sequence.last
		quote.payload = quote.of(quote.number)
		order = append(order, at)
	}
	return order
}

// unknown refuses what has no number, since nobody says where the sequence stands, or the time is over.
func (b *batch) unknown(fresh []int, err error) {
	var refused *Refused
	if !errors.As(err, &refused) {
		refused = refusal(err)
	}
	for _, at := range fresh {
		b.refuse(at, refused)
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
	requests, asked := make([]*pb.SignQuotesRequest, len(sent)), map[int]bool{}
	for at, index := range sent {
		quote := &pb.SignQuoteRequest{Environment: gateway.environment, Payload: b.quotes[index].payload}
		asked[index] = true
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
		at := int(answer.Tag)
		if !asked[at] || answers[at].Signed != nil {
			continue
		}
		if signed := answer.GetSigned(); signed != nil {
			answers[at] = Answer{Signed: &Signed{JWS: signed.Jws, Kid: signed.Kid, Sequence: signed.Sequence, Replayed: signed.Replayed}}
		} else if refused := answer.GetRefused(); refused != nil {
			told := &status.Status{Code: refused.Code, Message: refused.Message, Details: refused.Details}
			if codes.Code(told.Code) == codes.OK {
				told.Code = int32(codes.Unknown)
			}
			answers[at] = Answer{Refused: refusal(grpcstatus.ErrorProto(told))}
		}
	}
}

// take takes the answers in. It gives those quotes that are to be sent again as they were, each with what was said of it.
func (b *batch) take(sent []int, answers map[int]Answer, ended *Refused) map[int]*Refused {
	again := map[int]*Refused{}
	for _, at := range sent {
		answer, quote := answers[at], &b.quotes[at]
		if answer.Signed != nil {
			answer.Signed.Attempts, answer.Signed.CorrelationID = quote.attempts, b.idOf(at)
			quote.answer = answer
			continue
		}
		refused := answer.Refused
		if refused == nil {
			refused = ended
		}
		if refused == nil {
			refused = &Refused{Code: codes.Unknown, Message: "the stream ended without an answer", Action: Retry}
		}
		// What is said of one quote alone is not said of one without an answer, which may be signed.
		isOpen := answer.Refused == nil && (refused.Action == Renumber || refused.Action == Reissue)
		switch {
		case isOpen || refused.Action == Retry:
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
	b.quotes[at].answer = Answer{Refused: &own}
}

func (b *batch) refuseAll(again map[int]*Refused) {
	for at, refused := range again {
		b.refuse(at, refused)
	}
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
