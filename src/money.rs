//! Exact money: amounts in minor units by each currency's ISO 4217 exponent, and rates. Nothing is rounded
//! but where a rule says so by name, and what cannot be computed exactly is refused.

use std::{collections::BTreeMap, fmt};

use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Deserialize, Serialize};

use crate::domain::INTEGER_MAX;

/// Up to this many significant digits a product in [`Decimal`] (96 bits) is exact: 10^28 < 2^96.
const DIGITS_EXACT_MAX: u32 = 28;

/// An ISO 4217 code that stands in the bundle's reviewed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency {
    code: [u8; 3],
    exponent: u32,
}

impl Currency {
    /// The three letters.
    #[must_use]
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.code).unwrap_or_default()
    }

    /// Reads an amount with exactly this currency's fraction digits, no sign and no leading zero, into minor
    /// units of at most 2^53 - 1. Absent where the text is anything else.
    #[must_use]
    pub fn minor_units(&self, text: &str) -> Option<Minor> {
        let amount = plain_decimal(text)?;
        if amount.scale() != self.exponent {
            return None;
        }
        u64::try_from(amount.mantissa()).ok().filter(|minor| *minor <= INTEGER_MAX).map(Minor)
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// The reviewed currencies of a bundle (`currencies.csv`).
#[derive(Debug, Clone, Default)]
pub struct Currencies(BTreeMap<[u8; 3], Currency>);

impl Currencies {
    /// Reads `code,exponent` lines under that header, sorted and without repeats.
    ///
    /// # Errors
    /// One text per bad line, with its number.
    pub fn read(csv: &str) -> Result<Self, Vec<String>> {
        let mut currencies = BTreeMap::new();
        let mut faults = Vec::new();
        for (number, line) in (1..).zip(csv.lines()) {
            if number == 1 {
                if line != "code,exponent" {
                    faults.push("line 1: the header must be `code,exponent`".to_owned());
                }
                continue;
            }
            match Self::line(line) {
                Some(currency) if currencies.last_key_value().is_none_or(|(last, _)| *last < currency.code) => {
                    currencies.insert(currency.code, currency);
                }
                Some(_) => faults.push(format!("line {number}: codes must be sorted and not repeated")),
                None => faults.push(format!("line {number}: write three capital letters, a comma and 0 to 4")),
            }
        }
        if faults.is_empty() { Ok(Self(currencies)) } else { Err(faults) }
    }

    fn line(line: &str) -> Option<Currency> {
        let (code, exponent) = line.split_once(',')?;
        let code: [u8; 3] = code.as_bytes().try_into().ok()?;
        let exponent = exponent.parse().ok().filter(|exponent| *exponent <= 4)?;
        code.iter().all(u8::is_ascii_uppercase).then_some(Currency { code, exponent })
    }

    /// The codes of all of them.
    pub fn codes(&self) -> impl Iterator<Item = &str> {
        self.0.keys().filter_map(|code| std::str::from_utf8(code).ok())
    }

    /// The currency of this code.
    #[must_use]
    pub fn get(&self, code: &str) -> Option<Currency> {
        self.0.get(code.as_bytes()).copied()
    }
}

/// An amount in minor units, at most 2^53 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Minor(u64);

impl Minor {
    /// So many minor units; absent where they are beyond 2^53 - 1.
    #[must_use]
    pub fn new(units: u64) -> Option<Self> {
        (units <= INTEGER_MAX).then_some(Self(units))
    }

    /// The number of minor units.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// The sum; absent where it is beyond 2^53 - 1.
    #[must_use]
    pub fn plus(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).filter(|sum| *sum <= INTEGER_MAX).map(Self)
    }
}

/// How the receive amount is rounded to its currency's exponent. The contract names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// To the nearest, ties to the even digit.
    HalfEven,
    /// To the nearest, ties up.
    HalfUp,
    /// Towards zero.
    Down,
}

/// An exchange rate above zero: receive units for one send unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(Decimal);

impl Rate {
    /// Reads 1 to 9 digits, a point and 1 to 10 digits, no sign, no leading zero, not zero.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.')?;
        if whole.len() > 9 || fraction.len() > 10 {
            return None;
        }
        plain_decimal(text).filter(|rate| !rate.is_zero()).map(Self)
    }

    /// Whether it is exactly one.
    #[must_use]
    pub fn is_one(self) -> bool {
        self.0 == Decimal::ONE
    }

    /// `send` in units of its currency, times the rate, in minor units of `to`. Absent where the exact product
    /// has too many digits to be held, or is beyond 2^53 - 1 minor units.
    #[must_use]
    pub fn convert(self, send: Minor, from: Currency, to: Currency, rounding: Rounding) -> Option<Minor> {
        let send = Decimal::try_from_i128_with_scale(i128::from(send.0), from.exponent).ok()?;
        if digits(send) + digits(self.0) > DIGITS_EXACT_MAX {
            return None;
        }
        let strategy = match rounding {
            Rounding::HalfEven => RoundingStrategy::MidpointNearestEven,
            Rounding::HalfUp => RoundingStrategy::MidpointAwayFromZero,
            Rounding::Down => RoundingStrategy::ToZero,
        };
        let mut product = send.checked_mul(self.0)?.round_dp_with_strategy(to.exponent, strategy);
        product.rescale(to.exponent);
        (product.scale() == to.exponent)
            .then(|| u64::try_from(product.mantissa()).ok())?
            .filter(|minor| *minor <= INTEGER_MAX)
            .map(Minor)
    }
}

fn digits(number: Decimal) -> u32 {
    number.mantissa().unsigned_abs().checked_ilog10().map_or(1, |log| log + 1)
}

/// ASCII digits with at most one point, no sign, no leading zero, no exponent, no underscore: the forms that
/// `Decimal` itself would take beyond these are refused here.
fn plain_decimal(text: &str) -> Option<Decimal> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let all_digits =
        |part: &str| !part.is_empty() && part.len() <= 16 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || (whole.len() > 1 && whole.starts_with('0')) {
        return None;
    }
    Decimal::from_str_exact(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn currency(code: &str, exponent: u32) -> Currency {
        Currencies::line(&format!("{code},{exponent}")).unwrap()
    }

    #[test]
    fn an_amount_has_one_spelling() {
        let (gbp, jpy) = (currency("GBP", 2), currency("JPY", 0));
        assert_eq!(gbp.minor_units("0.05"), Some(Minor(5)));
        assert_eq!(gbp.minor_units("90071992547409.91"), Some(Minor(INTEGER_MAX)));
        assert_eq!(jpy.minor_units("100"), Some(Minor(100)));
        for bad in [
            "1",
            "1.5",
            "1.500",
            "01.00",
            ".50",
            "5.",
            "+1.00",
            "-1.00",
            "1e2",
            "1_0.00",
            " 1.00",
            "1.00\n",
            "1,00",
            "١.٠٠",
            "NaN",
            "",
            "1..00",
            "90071992547409.92",
            "99999999999999999.00",
        ] {
            assert_eq!(gbp.minor_units(bad), None, "{bad}");
        }
        assert_eq!(jpy.minor_units("100.0"), None);
    }

    #[test]
    fn ties_round_as_the_contract_names_it() {
        let usd = currency("USD", 2);
        let rate = Rate::read("0.5").unwrap();
        let half = |minor, rounding| rate.convert(Minor(minor), usd, usd, rounding).unwrap().get();
        assert_eq!([half(5, Rounding::HalfEven), half(7, Rounding::HalfEven)], [2, 4]);
        assert_eq!([half(5, Rounding::HalfUp), half(7, Rounding::Down)], [3, 3]);
    }

    #[test]
    fn beyond_the_exact_digits_a_product_is_refused_not_rounded() {
        let usd = currency("USD", 2);
        let rate = Rate::read("999999999.9999999999").unwrap();
        assert_eq!(rate.convert(Minor(9_999_999_999), usd, usd, Rounding::Down), None);
    }

    #[test]
    fn currencies_are_sorted_and_well_formed() {
        assert!(Currencies::read("code,exponent\nGBP,2\nJPY,0\n").is_ok());
        assert_eq!(Currencies::read("code,exponent\nJPY,0\nGBP,2\ngbp,2\nGBP,9").unwrap_err().len(), 3);
    }

    /// Against the crate's own list. It is no source of ours: its data come from an encyclopaedia.
    #[test]
    fn the_shipped_list_agrees_with_iso_4217() {
        // Bonds, funds, metals, units of account and test codes are no money to remit.
        const NOT_MONEY: [&str; 24] = [
            "BOV", "CHE", "CHW", "CLF", "COU", "MXV", "USN", "UYI", "UYW", "XAD", "XAG", "XAU", "XBA", "XBB", "XBC",
            "XBD", "XDR", "XPD", "XPT", "XSU", "XTS", "XUA", "XXX", "ZWL",
        ];
        // Withdrawn, and still in the crate.
        const WITHDRAWN: [&str; 5] = ["ANG", "BGN", "CUC", "HRK", "SLL"];
        let shipped = Currencies::read(include_str!("../policy/currencies.csv")).unwrap();
        for known in <iso_currency::Currency as iso_currency::IntoEnumIterator>::iter() {
            let code = known.code();
            if NOT_MONEY.contains(&code) || WITHDRAWN.contains(&code) {
                assert_eq!(shipped.get(code), None, "{code}");
                continue;
            }
            let ours = shipped.get(code).unwrap_or_else(|| panic!("{code} is missing"));
            assert_eq!(Some(ours.exponent), known.exponent().map(u32::from), "{code}");
        }
        let unknown = shipped.0.values().filter(|ours| iso_currency::Currency::from_code(ours.code()).is_none());
        let unknown: Vec<_> = unknown.map(ToString::to_string).collect();
        assert_eq!(unknown, Vec::<String>::new(), "codes that the crate does not know");
    }

    proptest! {
        /// Against plain integers, over all amounts and rates there are: inside the bound a product is exact,
        /// whatever the exponents, and beyond it there is none.
        #[test]
        fn products_are_exact_or_refused(
            send in 0..=INTEGER_MAX, send_digits in 1_u32..=16, rate in 1..10_u128.pow(19), rate_digits in 1_u32..=19,
            scale in 1_u32..=10, from in 0_u32..=4, to in 0_u32..=4,
        ) {
            let send = send % 10_u64.pow(send_digits);
            let mantissa = rate % 10_u128.pow(rate_digits.min(scale + 9)).max(2) + 1;
            let unit = 10_u128.pow(scale);
            let text = format!("{}.{:0width$}", mantissa / unit, mantissa % unit, width = scale as usize);
            prop_assume!(mantissa / unit < 1_000_000_000);
            let rate = Rate::read(&text).unwrap();
            let product = u128::from(send) * mantissa * 10_u128.pow(to);
            let unit = 10_u128.pow(from + scale);
            let (quotient, rest) = (product / unit, product % unit);
            let up = rest * 2 > unit || (rest * 2 == unit && quotient % 2 == 1);
            let exact = u64::try_from(quotient + u128::from(up)).ok().filter(|minor| *minor <= INTEGER_MAX);
            let converted = rate.convert(Minor(send), currency("AAA", from), currency("BBB", to), Rounding::HalfEven);
            let digits = |number: u128| number.checked_ilog10().map_or(1, |log| log + 1);
            if digits(send.into()) + digits(mantissa) > DIGITS_EXACT_MAX {
                prop_assert_eq!(converted, None);
            } else {
                prop_assert_eq!(converted.map(Minor::get), exact);
            }
        }
    }
}
