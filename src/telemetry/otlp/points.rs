//! The metrics as OTLP data points, made of the very text that `/metrics` gives, so that there is one table of names.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{InstrumentationScope, KeyValue},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, metric::Data, number_data_point::Value,
    },
    resource::v1::Resource,
};

use super::records::text;

/// When the counts began and when they were read, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The start of the gateway.
    pub from: u64,
    /// Now.
    pub to: u64,
}

/// A sample's labels, but for a bucket's bound.
type Labels = BTreeMap<String, String>;

/// The points of a family, as they are gathered line by line.
#[derive(Default)]
struct Family {
    numbers: Vec<(Labels, f64)>,
    histograms: BTreeMap<Labels, Buckets>,
}

#[derive(Default)]
struct Buckets {
    sum: f64,
    count: u64,
    /// Bounds and cumulative counts; the last one has no bound.
    bounds: Vec<(f64, u64)>,
}

/// A request with all metrics of this OpenMetrics text.
#[must_use]
pub fn request(resource: &Resource, openmetrics: &str, span: Span) -> ExportMetricsServiceRequest {
    let scope = InstrumentationScope { name: "quotesign".to_owned(), ..InstrumentationScope::default() };
    let scope_metrics =
        vec![ScopeMetrics { scope: Some(scope), metrics: metrics(openmetrics, span), schema_url: String::new() }];
    let resource = Some(resource.clone());
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { resource, scope_metrics, schema_url: String::new() }],
    }
}

fn metrics(openmetrics: &str, span: Span) -> Vec<Metric> {
    let (mut help, mut metrics) = ("", Vec::new());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(told) = line.strip_prefix("# HELP ") {
            help = told.split_once(' ').map_or("", |(_, help)| help);
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|told| told.split_once(' ')) else { continue };
        let mut family = Family::default();
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            // A line of another form is none that this program writes.
            let _taken = family.take(name, sample);
        }
        metrics.extend(family.metric(name, kind, help, span));
    }
    metrics
}

impl Family {
    fn take(&mut self, name: &str, sample: &str) -> Option<()> {
        let (full, rest) = sample.split_at(sample.find(['{', ' '])?);
        let (mut labels, value) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Labels::new(), rest),
        };
        let value: f64 = value.trim().parse().ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count is whole and not negative"
        )]
        let count = value as u64;
        match full.strip_prefix(name)? {
            "_sum" => self.histograms.entry(labels).or_default().sum = value,
            "_count" => self.histograms.entry(labels).or_default().count = count,
            "_bucket" => {
                let bound = labels.remove("le")?;
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
                self.histograms.entry(labels).or_default().bounds.push((bound, count));
            }
            _ => self.numbers.push((labels, value)),
        }
        Some(())
    }

    fn metric(self, name: &str, kind: &str, help: &str, span: Span) -> Option<Metric> {
        let numbers = self.numbers.into_iter().map(|(labels, value)| NumberDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: span.from,
            time_unix_nano: span.to,
            value: Some(Value::AsDouble(value)),
            ..NumberDataPoint::default()
        });
        let data_points: Vec<_> = numbers.collect();
        let cumulative = AggregationTemporality::Cumulative.into();
        let (name, data) = match kind {
            "counter" => {
                let sum = Sum { data_points, aggregation_temporality: cumulative, is_monotonic: true };
                (format!("{name}_total"), Data::Sum(sum))
            }
            "histogram" => {
                let data_points =
                    self.histograms.into_iter().map(|(labels, buckets)| buckets.point(labels, span)).collect();
                (name.to_owned(), Data::Histogram(Histogram { data_points, aggregation_temporality: cumulative }))
            }
            _ => (name.to_owned(), Data::Gauge(Gauge { data_points })),
        };
        let is_empty = match &data {
            Data::Sum(sum) => sum.data_points.is_empty(),
            Data::Gauge(gauge) => gauge.data_points.is_empty(),
            Data::Histogram(histogram) => histogram.data_points.is_empty(),
            _ => true,
        };
        let description = help.to_owned();
        (!is_empty).then(|| Metric { name, description, data: Some(data), ..Metric::default() })
    }
}

impl Buckets {
    fn point(self, labels: Labels, span: Span) -> HistogramDataPoint {
        let bounds = self.bounds.iter().map(|(bound, _)| *bound).filter(|bound| bound.is_finite()).collect();
        let mut before = 0;
        let counts = self.bounds.iter().map(|(_, count)| {
            let own = count.saturating_sub(before);
            before = *count;
            own
        });
        HistogramDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: span.from,
            time_unix_nano: span.to,
            count: self.count,
            sum: Some(self.sum),
            bucket_counts: counts.collect(),
            explicit_bounds: bounds,
            ..HistogramDataPoint::default()
        }
    }
}

fn attributes(labels: Labels) -> Vec<KeyValue> {
    labels.into_iter().map(|(name, value)| text(&name, value)).collect()
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquoted(quoted)?;
        labels.insert(name.to_owned(), value);
        rest = after;
    }
}

/// A value up to its closing quote, and what follows it.
fn unquoted(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, quoted.get(at.saturating_add(1)..)?)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_the_metrics_becomes_points() {
        let text = "# HELP q_calls Finished calls.\n# TYPE q_calls counter\nq_calls_total{method=\"a\",reason=\"x \\\"y\\\" {},\"} 3\n\
                    # HELP q_s How long.\n# TYPE q_s histogram\nq_s_sum{m=\"a\"} 1.5\nq_s_count{m=\"a\"} 3\n\
                    q_s_bucket{le=\"0.5\",m=\"a\"} 1\nq_s_bucket{le=\"1.0\",m=\"a\"} 3\nq_s_bucket{le=\"+Inf\",m=\"a\"} 3\n\
                    # HELP q_up Whether.\n# TYPE q_up gauge\nq_up 1\n# HELP q_none None.\n# TYPE q_none gauge\n# EOF\n";
        let metrics = metrics(text, Span { from: 1, to: 2 });
        let [calls, seconds, up] = metrics.as_slice() else { panic!("{metrics:?}") };
        let Some(Data::Sum(sum)) = &calls.data else { panic!("{calls:?}") };
        assert_eq!((calls.name.as_str(), calls.description.as_str()), ("q_calls_total", "Finished calls."));
        assert_eq!(sum.data_points[0].value, Some(Value::AsDouble(3.0)));
        assert_eq!(sum.data_points[0].attributes[1], super::text("reason", "x \"y\" {},"));
        let Some(Data::Histogram(histogram)) = &seconds.data else { panic!("{seconds:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum, &*point.bucket_counts), (3, Some(1.5), &[1, 2, 0][..]));
        assert_eq!(point.explicit_bounds, [0.5, 1.0]);
        assert!(matches!(&up.data, Some(Data::Gauge(gauge)) if gauge.data_points.len() == 1));
    }
}
