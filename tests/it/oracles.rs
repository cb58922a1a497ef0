//! The canonical form against two independent implementations, one of them in another language, over generated
//! quotes and mutations of them; and the strict reader against that language's own, made strict.

use std::{
    io::{BufReader, BufWriter, Read as _, Write as _},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc,
};

use quotesign::json;
use serde_json::{Map, Value, json};

use crate::stages::{LIMITS, repository};

/// How many quotes are generated, and how many mutations of them: all where `TRIALS` is set, as `make torture` does.
const QUOTES: usize = 100_000;
const QUOTES_IN_HASTE: usize = 20_000;

#[test]
fn every_canonical_form_is_what_two_others_write() {
    let quotes = if std::env::var_os("TRIALS").is_some() { QUOTES } else { QUOTES_IN_HASTE };
    let mut python = Command::new(repository(".tools/py/bin/python"))
        .arg(repository("tests/external/rfc8785_oracle.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`scripts/setup test` makes .tools/py");
    let mut oracle = Oracle::new(python.stdin.take().unwrap());
    let answers = BufReader::new(python.stdout.take().unwrap());
    let (expect, expected) = mpsc::sync_channel(1000);
    let comparing = std::thread::spawn(move || compare(answers, &expected));
    let mut dice = Dice(0x5eed_0f00_d0c5);
    let mut mutations_read = 0;
    for _ in 0..quotes {
        let quote = any_quote(&mut dice);
        let quote = spelt(&mut dice, &quote);
        let form = form(&quote).expect("a generated quote is strict I-JSON");
        oracle.ask(&quote);
        expect.send((quote.clone(), form)).unwrap();
        let mutation = mutated(&mut dice, &quote);
        if let Some(form) = form_of_mutation(&mutation) {
            mutations_read += 1;
            oracle.ask(&mutation);
            expect.send((mutation, form)).unwrap();
        }
    }
    oracle.finish();
    drop(expect);
    let compared = comparing.join().unwrap();
    assert_eq!(compared, quotes + mutations_read);
    assert!(mutations_read > quotes / 4, "too few mutations could be read: {mutations_read}");
    assert!(python.wait().unwrap().success());
}

/// What the gateway would sign for this document, once both canonicalisers of this process agree and the form reads
/// as the document did; absent where the strict reader refuses it.
fn form(document: &[u8]) -> Option<Vec<u8>> {
    let quote = json::read_object(document, &LIMITS).ok()?;
    let form = serde_jcs::to_vec(&quote).unwrap();
    let other = serde_json_canonicalizer::to_vec(&quote).unwrap();
    assert!(form == other, "{} or {}", shown(&form), shown(&other));
    let again = json::read_object(&form, &LIMITS).unwrap();
    assert!(again == quote, "{} reads otherwise than {}", shown(&form), shown(document));
    Some(form)
}

fn form_of_mutation(document: &[u8]) -> Option<Vec<u8>> {
    // Nobody may sign what a plain reader does not even take for JSON.
    form(document).inspect(|_| assert!(serde_json::from_slice::<Value>(document).is_ok(), "{}", shown(document)))
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The questions to the oracle.
struct Oracle(BufWriter<ChildStdin>);

impl Oracle {
    fn new(stdin: ChildStdin) -> Self {
        Self(BufWriter::with_capacity(1 << 16, stdin))
    }

    fn ask(&mut self, document: &[u8]) {
        self.0.write_all(&u32::try_from(document.len()).unwrap().to_be_bytes()).unwrap();
        self.0.write_all(document).unwrap();
    }

    fn finish(mut self) {
        self.0.flush().unwrap();
    }
}

/// Holds every answer against what is expected. How many there were.
fn compare(mut answers: BufReader<ChildStdout>, expected: &mpsc::Receiver<(Vec<u8>, Vec<u8>)>) -> usize {
    const REFUSED: u32 = u32::MAX;
    let mut compared = 0;
    let length = |answers: &mut BufReader<ChildStdout>| {
        let mut length = [0; 4];
        answers.read_exact(&mut length).expect("an answer to every question");
        u32::from_be_bytes(length)
    };
    for (document, form) in expected {
        let first = length(&mut answers);
        let mut answer = vec![0; if first == REFUSED { length(&mut answers) } else { first } as usize];
        answers.read_exact(&mut answer).unwrap();
        assert_ne!(first, REFUSED, "{} is refused by the oracle: {}", shown(&document), shown(&answer));
        assert!(answer == form, "{} or {}", shown(&form), shown(&answer));
        compared += 1;
    }
    compared
}

/// xorshift64: the same quotes in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap() % bound
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

/// Letters on which writers and sorters like to differ: escapes, the two orders of UTF-16 and of code points, what
/// browsers escape, combining marks, and the last letter of each length in UTF-8.
const LETTERS: [char; 26] = [
    'a',
    'b',
    'z',
    'A',
    'Z',
    '0',
    '9',
    '_',
    '-',
    '.',
    ' ',
    '"',
    '\\',
    '/',
    '<',
    '\u{20ac}',
    '\u{e9}',
    '\u{301}',
    '\u{fb33}',
    '\u{ad}',
    '\u{7ff}',
    '\u{e000}',
    '\u{fffd}',
    '\u{10000}',
    '\u{1f600}',
    '\u{10fffd}',
];
const INTEGERS: [i64; 8] = [0, 1, -1, 10, 4_294_967_296, 9_007_199_254_740_991, -9_007_199_254_740_991, 1_000_000_000];

/// A quote of the shipped contract's claims; every other one with further members of any kind.
fn any_quote(dice: &mut Dice) -> Value {
    let amount = |dice: &mut Dice| format!("{}.{:02}", dice.below(1 << 20), dice.below(100));
    let mut quote = json!({
        "quote_signature_v1": "v1",
        "partner_id": "acme-remit",
        "subscription_id": format!("sub_{:x}", dice.next()),
        "quote_id": format!("q-{}", dice.next()),
        "quote_sequence": dice.below(1 << 53) % 9_007_199_254_740_991 + 1,
        "corridor": dice.pick(&["GB-IN", "GB-NG", "US-JP"]),
        "send_amount": amount(dice),
        "send_currency": dice.pick(&["GBP", "USD", "EUR"]),
        "receive_amount": amount(dice),
        "receive_currency": dice.pick(&["INR", "NGN", "JPY"]),
        "fx_rate": format!("{}.{}", dice.below(1000), dice.below(1_000_000)),
        "partner_fee": amount(dice),
        "principal_fee": amount(dice),
        "total_customer_cost": amount(dice),
        "issued_at": "2026-06-15T10:00:00Z",
        "expires_at": "2026-06-15T10:10:00Z",
    });
    if dice.one_in(2) {
        for _ in 0..=dice.below(4) {
            quote[word(dice)] = any_value(dice, 4);
        }
    }
    quote
}

fn word(dice: &mut Dice) -> String {
    (0..dice.below(6)).map(|_| dice.pick(&LETTERS)).collect()
}

fn any_value(dice: &mut Dice, depth: usize) -> Value {
    match dice.below(if depth == 0 { 4 } else { 6 }) {
        0 => Value::Null,
        1 => dice.one_in(2).into(),
        2 if dice.one_in(2) => dice.pick(&INTEGERS).into(),
        2 => (i64::try_from(dice.next() >> 12).unwrap() - (1 << 51)).into(),
        3 => word(dice).into(),
        4 => (0..dice.below(4)).map(|_| any_value(dice, depth - 1)).collect(),
        _ => Value::Object((0..dice.below(5)).map(|_| (word(dice), any_value(dice, depth - 1))).collect()),
    }
}

/// Writes a value in one of its many spellings: members in any order, white space, escapes.
fn spelt(dice: &mut Dice, value: &Value) -> Vec<u8> {
    let mut text = String::new();
    spell(dice, value, &mut text);
    text.into_bytes()
}

fn spell(dice: &mut Dice, value: &Value, text: &mut String) {
    space(dice, text);
    match value {
        Value::String(string) => spell_string(dice, string, text),
        Value::Array(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                text.push_str(if at > 0 { "," } else { "" });
                spell(dice, item, text);
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            dice.shuffle(&mut members);
            text.push('{');
            for (at, (name, member)) in members.into_iter().enumerate() {
                text.push_str(if at > 0 { "," } else { "" });
                space(dice, text);
                spell_string(dice, name, text);
                space(dice, text);
                text.push(':');
                spell(dice, member, text);
            }
            text.push('}');
        }
        plain => text.push_str(&plain.to_string()),
    }
    space(dice, text);
}

fn space(dice: &mut Dice, text: &mut String) {
    if dice.one_in(8) {
        text.push_str(dice.pick(&[" ", "\n", "\t", "\r\n", "  "]));
    }
}

fn spell_string(dice: &mut Dice, string: &str, text: &mut String) {
    text.push('"');
    for letter in string.chars() {
        match letter {
            '"' | '\\' if dice.one_in(2) => text.extend(['\\', letter]),
            '/' if dice.one_in(2) => text.push_str("\\/"),
            '"' | '\\' => escape(dice, letter, text),
            _ if dice.one_in(12) => escape(dice, letter, text),
            _ => text.push(letter),
        }
    }
    text.push('"');
}

fn escape(dice: &mut Dice, letter: char, text: &mut String) {
    for unit in letter.encode_utf16(&mut [0; 2]) {
        let hex = if dice.one_in(2) { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") };
        text.push_str(&hex);
    }
}

/// A change to a document, without regard for what it makes of it; now and then several.
fn mutated(dice: &mut Dice, document: &[u8]) -> Vec<u8> {
    let mut bytes = document.to_vec();
    loop {
        mutate(dice, &mut bytes);
        if !dice.one_in(4) {
            return bytes;
        }
    }
}

fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let at = dice.below(bytes.len().max(1));
    let end = (at + 1 + dice.below(24)).min(bytes.len());
    match dice.below(10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
        1 if at < bytes.len() => {
            let other = dice.below(bytes.len());
            bytes.swap(at, other);
        }
        2 if at < end => drop(bytes.drain(at..end)),
        3 if at < end => {
            let copied = bytes[at..end].to_vec();
            bytes.splice(end..end, copied);
        }
        4 => edit_number(dice, bytes),
        5 => {
            let mut escaped = String::new();
            let letter = dice.pick(&LETTERS);
            escape(dice, letter, &mut escaped);
            bytes.splice(at..at, escaped.into_bytes());
        }
        6 => {
            let letter = dice.pick(&LETTERS);
            bytes.splice(at..at, letter.to_string().into_bytes());
        }
        // The same quote in another order and spelling, with a member less or one twice.
        _ => {
            if let Ok(Value::Object(members)) = serde_json::from_slice(bytes) {
                *bytes = reordered(dice, members);
            }
        }
    }
}

fn edit_number(dice: &mut Dice, bytes: &mut Vec<u8>) {
    const EDITS: [&str; 12] = ["0", "1", "9", "-", ".", ".0", "e0", "E+1", "00", "9007199254740992", "-0", "+"];
    let digits: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
    if let Some(at) = (!digits.is_empty()).then(|| dice.pick(&digits)) {
        let until = at + dice.below(2);
        bytes.splice(at..until, dice.pick(&EDITS).bytes());
    }
}

fn reordered(dice: &mut Dice, mut members: Map<String, Value>) -> Vec<u8> {
    let names: Vec<_> = members.keys().cloned().collect();
    let doubled = match dice.below(6) {
        0 if !names.is_empty() => {
            members.remove(&names[dice.below(names.len())]);
            None
        }
        1 if !names.is_empty() => Some(names[dice.below(names.len())].clone()),
        _ => None,
    };
    let mut bytes = spelt(dice, &Value::Object(members));
    if let Some((name, end)) = doubled.zip(bytes.iter().rposition(|byte| *byte == b'}')) {
        let mut member = ",".to_owned();
        spell_string(dice, &name, &mut member);
        member.push_str(":1");
        bytes.splice(end..end, member.into_bytes());
    }
    bytes
}
