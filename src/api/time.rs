//! Timestamps of the API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Length of a day, in seconds.
const DAY_S: i64 = 86_400;

/// Whole seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns the time `seconds` later.
    #[must_use]
    pub fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add_unsigned(seconds))
    }

    /// Returns the start of the day in UTC.
    #[must_use]
    pub fn day_start(self) -> Self {
        Self(self.0 - self.0.rem_euclid(DAY_S))
    }

    /// Returns the start of the calendar month in UTC.
    #[must_use]
    pub fn month_start(self) -> Self {
        let day = self.0.div_euclid(DAY_S);
        Self((day - day_of_month(day)) * DAY_S)
    }

    /// Returns the start of the next calendar month in UTC.
    #[must_use]
    pub fn next_month_start(self) -> Self {
        // The 32nd day after the first of a month is in the next month.
        self.month_start().plus(31 * DAY_S.unsigned_abs()).month_start()
    }
}

/// Returns the day of the month, from 0, of a day that is counted from the Unix epoch.
///
/// Years begin in March, so that leap days come last. Months then alternate between 31 and 30 days, except that two of 31
/// days follow each other twice, which is what the fraction 153 / 5 does.
fn day_of_month(day: i64) -> i64 {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    /// From the first of March of the year 0 to the Unix epoch.
    const DAYS_TO_EPOCH: i64 = 719_468;
    let day_of_era = (day + DAYS_TO_EPOCH).rem_euclid(DAYS_OF_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    day_of_year - (153 * month + 2) / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_months_start_in_utc() {
        // 2024-02-29 12:34:56, 2026-12-31 23:59:59, 2000-03-01 00:00:00, 1969-12-31 23:59:59.
        let months = [
            (1_709_210_096, 1_706_745_600, 1_709_251_200),
            (1_798_761_599, 1_796_083_200, 1_798_761_600),
            (951_868_800, 951_868_800, 954_547_200),
            (-1, -2_678_400, 0),
        ];
        for (now, start, next) in months {
            let now = Timestamp(now);
            assert_eq!((now.month_start(), now.next_month_start()), (Timestamp(start), Timestamp(next)), "{now:?}");
        }
        assert_eq!(Timestamp(1_709_210_096).day_start(), Timestamp(1_709_164_800));
    }
}
