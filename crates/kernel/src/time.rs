//! Moments as milliseconds since 1970 in UTC; printed as RFC 3339 with milliseconds.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A moment, in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// That many milliseconds earlier.
    pub fn minus_ms(self, ms: u64) -> Self {
        Timestamp(self.0.saturating_sub_unsigned(ms).max(0))
    }

    /// This moment and `ms` milliseconds more, within what can be printed.
    pub fn plus_ms(self, ms: u64) -> Self {
        const LAST_MS: i64 = 253_402_207_200_000; // 9999-12-30T22:00:00Z, the last that jiff takes
        Timestamp(self.0.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)).min(LAST_MS))
    }

    /// Milliseconds from `earlier` to here; 0 when `earlier` is later.
    pub fn since_ms(self, earlier: Timestamp) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{moment:.3}")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        jiff::Timestamp::from_str(text)
            .map(|t| Timestamp(t.as_millisecond()))
            .map_err(|_| format!("'{text}' is no RFC 3339 time such as 2026-01-31T12:00:00.000Z"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_prints_with_milliseconds_in_utc() {
        assert_eq!(Timestamp(1_767_225_600_000).to_string(), "2026-01-01T00:00:00.000Z");
        assert_eq!("2026-01-01T01:00:00+01:00".parse(), Ok(Timestamp(1_767_225_600_000)));
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn sums_stay_printable() {
        assert_eq!(Timestamp(1).plus_ms(u64::MAX).to_string(), "9999-12-30T22:00:00.000Z");
        assert_eq!(Timestamp(5).since_ms(Timestamp(9)), 0);
    }
}
