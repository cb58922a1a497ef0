//! Which key signs when, as text and as a picture that needs nothing but itself.

use std::fmt::Write as _;

use crate::{
    clock::UtcTime,
    domain::PartnerId,
    policy::{
        Bundle, Partner,
        timeline::{Span, TimedKey},
    },
};

/// The bars of one key, in pixels.
const ROW: i64 = 26;
const LEFT: i64 = 250;
const WIDTH: i64 = 900;
const HEAD: i64 = 46;

/// The time that is shown.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Its beginning.
    pub from: UtcTime,
    /// Its end.
    pub until: UtcTime,
    /// The instant that is asked about.
    pub now: UtcTime,
}

impl Window {
    /// All that the timeline of `bundle` speaks of, and `now`.
    #[must_use]
    pub fn of(bundle: &Bundle, now: UtcTime) -> Self {
        let keys = || bundle.timeline.all();
        let from = keys().map(|key| key.publish_at).chain([now]).min().unwrap_or(now);
        let until = keys().map(|key| key.retire_at).chain([now]).max().unwrap_or(now);
        Self { from, until, now }
    }

    fn x(&self, at: UtcTime) -> i64 {
        let all = (self.until.millis() - self.from.millis()).max(1);
        LEFT + (at.millis() - self.from.millis()).clamp(0, all) * WIDTH / all
    }
}

/// As text: for each partner its keys, and then who signs in which span.
#[must_use]
pub fn text(bundle: &Bundle, window: Window) -> String {
    let mut lines = Vec::new();
    for partner in bundle.partners() {
        lines.push(partner.id.to_string());
        for key in bundle.timeline.of(&partner.id) {
            let TimedKey { kid, publish_at, sign_from, sign_until, retire_at, .. } = &**key;
            let (state, standby) = (key.state(window.now), if key.standby { ", standby" } else { "" });
            lines.push(format!(
                "  {kid}: {state:?}{standby}; published {publish_at}, signs {sign_from} to {sign_until}, retired {retire_at}"
            ));
        }
        for Span { from, until, key } in spans(bundle, partner, window) {
            let until = until.map_or_else(|| "on".to_owned(), |until| format!("to {until}"));
            let who = key.map_or_else(|| "NOBODY SIGNS".to_owned(), |key| format!("{} signs", key.kid));
            lines.push(format!("    {from} {until}: {who}"));
        }
    }
    let notices = bundle.ahead(window.now, |_| false).into_iter();
    lines.extend(notices.map(|notice| format!("warning: {} {}: {}", notice.partner, notice.at, notice.text)));
    lines.join("\n")
}

/// From the first instant at which anything could have signed: what was before it is no gap.
fn spans<'b>(bundle: &'b Bundle, partner: &'b Partner, window: Window) -> Vec<Span<'b>> {
    let spans = bundle.timeline.spans(&partner.id, (window.from, window.until), |_| false);
    spans.into_iter().skip_while(|span| span.key.is_none()).collect()
}

/// As a self-contained SVG: of one partner, or of all.
#[must_use]
pub fn svg(bundle: &Bundle, only: Option<&PartnerId>, window: Window) -> String {
    let partners = || bundle.partners().filter(|partner| only.is_none_or(|only| *only == partner.id));
    let rows: usize = partners().map(|partner| 2 + bundle.timeline.of(&partner.id).count()).sum();
    let height = HEAD + ROW * i64::try_from(rows).unwrap_or(i64::MAX / ROW / 2) + 20;
    let mut picture = Picture { text: String::new(), y: HEAD, window };
    for partner in partners() {
        picture.partner(bundle, partner);
    }
    let Window { from, until, now } = window;
    let (x, bottom) = (window.x(now), height - 20);
    let body = picture.text;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">
<title>Key timeline of the {environment} bundle, serial {serial}</title>
<rect width="{width}" height="{height}" fill="#fff"/>
<text x="10" y="18" font-size="14">{environment}, serial {serial}: light is published, dark signs, red is nobody</text>
<text x="{LEFT}" y="36">{from}</text><text x="{right}" y="36" text-anchor="end">{until}</text>
{body}<line x1="{x}" x2="{x}" y1="{HEAD}" y2="{bottom}" stroke="#000" stroke-dasharray="3 3"/>
<text x="{x}" y="{height}" dy="-6" text-anchor="middle">{now}</text>
</svg>
"##,
        width = LEFT + WIDTH + 20,
        right = LEFT + WIDTH,
        environment = bundle.environment,
        serial = bundle.serial,
    )
}

struct Picture {
    text: String,
    y: i64,
    window: Window,
}

impl Picture {
    fn partner(&mut self, bundle: &Bundle, partner: &Partner) {
        let y = self.y + 17;
        self.put(format_args!(r#"<text x="10" y="{y}" font-weight="bold">{}</text>"#, partner.id));
        for span in spans(bundle, partner, self.window) {
            let (colour, what) = match span.key {
                Some(key) => ("#1b7f4b", format!("{} signs", key.kid)),
                None => ("#c62828", "nobody signs".to_owned()),
            };
            self.bar(span.from, span.until.unwrap_or(self.window.until), colour, &what);
        }
        self.y += ROW;
        for key in bundle.timeline.of(&partner.id) {
            self.key(key);
        }
        self.y += ROW;
    }

    fn key(&mut self, key: &TimedKey) {
        let y = self.y + 17;
        let standby = if key.standby { " (standby)" } else { "" };
        self.put(format_args!(r#"<text x="20" y="{y}">{}{standby}</text>"#, key.kid));
        self.bar(key.publish_at, key.retire_at, "#cfe3f5", "published");
        self.bar(key.sign_from, key.sign_until, "#4a7fb5", "may sign");
        self.y += ROW;
    }

    fn bar(&mut self, from: UtcTime, until: UtcTime, colour: &str, what: &str) {
        let (x, end, y) = (self.window.x(from), self.window.x(until), self.y + 4);
        let width = (end - x).max(1);
        self.put(format_args!(
            r#"<rect x="{x}" y="{y}" width="{width}" height="18" fill="{colour}"><title>{what}: {from} to {until}</title></rect>"#
        ));
    }

    /// Ids, kids and times need no escaping: their grammars have nothing that XML takes for markup.
    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _written = writeln!(self.text, "{element}");
    }
}
