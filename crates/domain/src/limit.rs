//! How much somebody may ask for: buckets of tokens that fill up at a rate. Pure: the time is an argument.

use kernel::Timestamp;

/// So many in a period; as many at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In how long.
    pub period_ms: u64,
}

/// By how much an emergency cuts every rate.
const EMERGENCY_DIVISOR: u32 = 10;

impl Rate {
    /// `200/s`, `600/m`, `5000/h`.
    pub fn parse(text: &str) -> Option<Rate> {
        let (count, unit) = text.split_once('/')?;
        let period_ms = match unit {
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let count = count.parse().ok().filter(|count| (1..=10_000_000).contains(count))?;
        Some(Rate { count, period_ms })
    }

    /// What is left of it in an emergency.
    pub fn in_emergency(self) -> Rate {
        Rate { count: (self.count / EMERGENCY_DIVISOR).max(1), ..self }
    }

    fn gained(self, ms: u64) -> f64 {
        ms as f64 * f64::from(self.count) / self.period_ms as f64
    }

    fn ms_for(self, tokens: f64) -> u64 {
        (tokens.max(0.0) * self.period_ms as f64 / f64::from(self.count)).ceil() as u64
    }
}

/// What somebody has left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// How it stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many there are at most.
    pub limit: u32,
    /// How many more are allowed now.
    pub remaining: u32,
    /// Until everything is there again.
    pub reset_ms: u64,
    /// Until one more is allowed, if none is now.
    pub wait_ms: Option<u64>,
}

impl Bucket {
    /// A full one.
    pub fn full(rate: Rate, now: Timestamp) -> Bucket {
        Bucket { tokens: f64::from(rate.count), at: now }
    }

    fn refill(&mut self, rate: Rate, now: Timestamp) {
        self.tokens = (self.tokens + rate.gained(now.since_ms(self.at))).min(f64::from(rate.count));
        // A clock that was set back gives nothing and takes nothing.
        self.at = now;
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> Standing {
        self.refill(rate, now);
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        Standing { wait_ms: (!has_one).then(|| rate.ms_for(1.0 - self.tokens).max(1)), ..self.standing(rate) }
    }

    /// How it stands, without taking any.
    pub fn look(&mut self, rate: Rate, now: Timestamp) -> Standing {
        self.refill(rate, now);
        Standing { wait_ms: (self.tokens < 1.0).then(|| rate.ms_for(1.0 - self.tokens).max(1)), ..self.standing(rate) }
    }

    /// Others have taken some. It may owe as much as it holds at most, so that nobody is shut out for longer than a period.
    pub fn spend(&mut self, count: u32, rate: Rate, now: Timestamp) {
        self.refill(rate, now);
        self.tokens = (self.tokens - f64::from(count)).max(-f64::from(rate.count));
    }

    /// Whether it is as good as new, so that it can be forgotten.
    pub fn is_full(&self, rate: Rate, now: Timestamp) -> bool {
        self.tokens + rate.gained(now.since_ms(self.at)) >= f64::from(rate.count)
    }

    fn standing(&self, rate: Rate) -> Standing {
        let limit = rate.count;
        let remaining = self.tokens.max(0.0).floor() as u32;
        Standing { limit, remaining, reset_ms: rate.ms_for(f64::from(limit) - self.tokens), wait_ms: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate { count: 10, period_ms: 1_000 };

    #[test]
    fn rates_are_written_with_their_period() {
        assert_eq!(Rate::parse("200/s"), Some(Rate { count: 200, period_ms: 1_000 }));
        assert_eq!(Rate::parse("5/h"), Some(Rate { count: 5, period_ms: 3_600_000 }));
        for bad in ["", "5", "0/s", "-1/s", "5/d", "5/ s", "x/s", "99999999999/s"] {
            assert_eq!(Rate::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_empty_bucket_says_when_to_come_back_and_means_it() {
        let mut bucket = Bucket::full(RATE, Timestamp(0));
        for left in (0..10).rev() {
            assert_eq!(bucket.take(RATE, Timestamp(0)).remaining, left);
        }
        let refused = bucket.take(RATE, Timestamp(0));
        assert_eq!((refused.wait_ms, refused.reset_ms), (Some(100), 1_000));
        assert!(matches!(bucket.take(RATE, Timestamp(99)).wait_ms, Some(1 | 2)));
        assert_eq!(bucket.take(RATE, Timestamp(100)).wait_ms, None);
    }

    #[test]
    fn what_others_took_is_owed_for_a_period_at_most() {
        let mut bucket = Bucket::full(RATE, Timestamp(0));
        bucket.spend(1_000, RATE, Timestamp(0));
        assert!(bucket.take(RATE, Timestamp(1_000)).wait_ms.is_some());
        assert!(bucket.take(RATE, Timestamp(2_000)).wait_ms.is_none());
    }

    proptest! {
        #[test]
        fn never_more_than_a_burst_and_the_rate(steps in prop::collection::vec(0u16..50, 1..400)) {
            let (mut bucket, mut now, mut taken) = (Bucket::full(RATE, Timestamp(0)), 0i64, 0u64);
            for step in steps {
                now += i64::from(step);
                taken += u64::from(bucket.take(RATE, Timestamp(now)).wait_ms.is_none());
            }
            prop_assert!(taken <= 10 + now as u64 / 100 + 1);
        }
    }
}
