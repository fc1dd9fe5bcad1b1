//! Hours in which a source is left alone, such as `"22:00-06:00"` or `"sat,sun 00:00-24:00"`, in UTC.
//!
//! Invariant: pure arithmetic on the time it is given; a range over midnight belongs to the day on which it begins.

use std::fmt;
use std::time::{Duration, SystemTime};

/// Monday first.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const MINUTES_OF_DAY: u32 = 24 * 60;
const MINUTES_OF_WEEK: u32 = 7 * MINUTES_OF_DAY;
/// The first day of Unix time was a Thursday.
const FIRST_DAY: u64 = 3;

/// One range of hours, on some days of the week.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct QuietHours {
    /// Monday first.
    days: [bool; 7],
    /// Minutes of the day.
    from: u32,
    /// Beyond 24 hours when the range passes midnight.
    to: u32,
}

impl QuietHours {
    /// `[days ]HH:MM-HH:MM`; days are `mon` to `sun`, single or as a range, with commas between them.
    ///
    /// # Errors
    /// What would have been right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{}\" is not a range of hours; write one such as \"22:00-06:00\" or \"sat,sun 00:00-24:00\", in UTC",
                text.chars().take(80).flat_map(char::escape_debug).collect::<String>()
            )
        };
        let (days, hours) = match text.trim().rsplit_once(' ') {
            Some((days, hours)) => (parse_days(days).ok_or_else(wrong)?, hours),
            None => ([true; 7], text.trim()),
        };
        let (from, to) = hours.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (minutes(from).ok_or_else(wrong)?, minutes(to).ok_or_else(wrong)?);
        if from == to || from == MINUTES_OF_DAY {
            return Err("begins and ends at the same time; write \"00:00-24:00\" for a whole day".to_owned());
        }
        let to = if to < from { to + MINUTES_OF_DAY } else { to };
        Ok(Self { days, from, to })
    }

    /// The minute of the week at which the range that holds `minute` ends, not wrapped.
    fn end_around(&self, minute: u32) -> Option<u32> {
        self.days.iter().zip(0..).filter(|(on, _)| **on).find_map(|(_, day)| {
            let (from, to) = (day * MINUTES_OF_DAY + self.from, day * MINUTES_OF_DAY + self.to);
            // The last range of a week may reach into the next one.
            [minute, minute + MINUTES_OF_WEEK]
                .into_iter()
                .find(|minute| (from..to).contains(minute))
                .map(|found| minute + (to - found))
        })
    }
}

impl fmt::Debug for QuietHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuietHours({self})")
    }
}

impl fmt::Display for QuietHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.days.iter().all(|on| *on) {
            let days: Vec<&str> =
                self.days.iter().zip(DAYS).filter(|(on, _)| **on).map(|(_, day)| day).collect();
            write!(f, "{} ", days.join(","))?;
        }
        let to = if self.to > MINUTES_OF_DAY { self.to - MINUTES_OF_DAY } else { self.to };
        write!(f, "{:02}:{:02}-{:02}:{:02}", self.from / 60, self.from % 60, to / 60, to % 60)
    }
}

/// When hours that are quiet now end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    At(SystemTime),
    /// They follow each other without an end.
    Never,
}

/// Whether it is quiet at `now`, and until when: ranges that follow each other count as one.
pub fn quiet_until(hours: &[QuietHours], now: SystemTime) -> Option<Until> {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let all_minutes = since_epoch.as_secs() / 60;
    let days = all_minutes / u64::from(MINUTES_OF_DAY) + FIRST_DAY;
    let begin = u32::try_from(days % 7 * u64::from(MINUTES_OF_DAY) + all_minutes % u64::from(MINUTES_OF_DAY))
        .unwrap_or_default();
    let mut end = begin;
    while let Some(later) =
        hours.iter().filter_map(|hours| hours.end_around(end % MINUTES_OF_WEEK)).max().map(|later| {
            // Where it is in the weeks that were walked already.
            end - end % MINUTES_OF_WEEK + later
        })
    {
        end = later;
        if end - begin >= MINUTES_OF_WEEK {
            return Some(Until::Never);
        }
    }
    if end == begin {
        return None;
    }
    let minutes = all_minutes + u64::from(end - begin);
    Some(Until::At(SystemTime::UNIX_EPOCH + Duration::from_secs(minutes * 60)))
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let mut days = [false; 7];
    let day = |name: &str| DAYS.iter().position(|day| *day == name.trim());
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        let mut at = first;
        loop {
            *days.get_mut(at)? = true;
            if at == last {
                break;
            }
            at = (at + 1) % 7;
        }
    }
    Some(days)
}

/// `HH:MM` up to `24:00`, in minutes.
fn minutes(text: &str) -> Option<u32> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= MINUTES_OF_DAY).then_some(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    fn until(hours: &[&str], now: &str) -> Option<String> {
        let hours: Vec<_> = hours.iter().map(|text| QuietHours::parse(text).unwrap()).collect();
        quiet_until(&hours, at(now)).map(|until| match until {
            Until::At(at) => humantime::format_rfc3339(at).to_string(),
            Until::Never => "never".to_owned(),
        })
    }

    #[test]
    fn hours_are_quiet_until_they_end() {
        // 2026-11-28 is a Saturday.
        let cases: &[(&[&str], &str, Option<&str>)] = &[
            (&[], "2026-11-28T12:00:00Z", None),
            (&["08:00-12:00"], "2026-11-28T07:59:59Z", None),
            (&["08:00-12:00"], "2026-11-28T08:00:00Z", Some("2026-11-28T12:00:00Z")),
            (&["08:00-12:00"], "2026-11-28T11:59:59Z", Some("2026-11-28T12:00:00Z")),
            (&["08:00-12:00"], "2026-11-28T12:00:00Z", None),
            (&["22:00-06:00"], "2026-11-28T23:30:00Z", Some("2026-11-29T06:00:00Z")),
            (&["22:00-06:00"], "2026-11-29T05:59:00Z", Some("2026-11-29T06:00:00Z")),
            (&["22:00-06:00"], "2026-11-29T06:00:00Z", None),
            // Sunday night reaches into Monday.
            (&["sun 22:00-06:00"], "2026-11-30T01:00:00Z", Some("2026-11-30T06:00:00Z")),
            (&["sun 22:00-06:00"], "2026-12-01T01:00:00Z", None),
            (&["mon-fri 09:00-17:00"], "2026-11-28T10:00:00Z", None),
            (&["mon-fri 09:00-17:00"], "2026-11-27T10:00:00Z", Some("2026-11-27T17:00:00Z")),
            (&["fri-mon 09:00-17:00"], "2026-11-29T10:00:00Z", Some("2026-11-29T17:00:00Z")),
            // Ranges that meet count as one, over the end of the week too.
            (
                &["sat,sun 00:00-24:00", "mon 00:00-07:00"],
                "2026-11-28T10:00:00Z",
                Some("2026-11-30T07:00:00Z"),
            ),
            (&["08:00-12:00", "11:00-14:00"], "2026-11-28T10:00:00Z", Some("2026-11-28T14:00:00Z")),
            (&["00:00-24:00"], "2026-11-28T10:00:00Z", Some("never")),
            (&["00:00-12:00", "12:00-24:00"], "2026-11-28T10:00:00Z", Some("never")),
        ];
        for (hours, now, wanted) in cases {
            assert_eq!(until(hours, now).as_deref(), *wanted, "{hours:?} at {now}");
        }
    }

    #[test]
    fn what_is_no_range_is_said() {
        for text in [
            "",
            "22:00",
            "22-06",
            "25:00-26:00",
            "24:00-06:00",
            "08:00-08:00",
            "8:00-9:00",
            "mon",
            "mon 22:00",
            "moon 01:00-02:00",
            "01:60-02:00",
            "+1:00-02:00",
            "mon,,tue 01:00-02:00",
        ] {
            assert!(QuietHours::parse(text).is_err(), "{text:?}");
        }
        for text in ["22:00-06:00", "mon,tue 00:00-24:00", "sun 23:59-00:01"] {
            assert_eq!(QuietHours::parse(text).unwrap().to_string(), text);
        }
    }

    proptest! {
        /// Against a walk over the minutes.
        #[test]
        fn the_end_is_the_first_minute_that_is_not_quiet(
            ranges in proptest::collection::vec((0u32..1440, 1u32..1440, 1u8..128), 0..4),
            minute in 0u64..20_160,
        ) {
            let hours: Vec<QuietHours> = ranges
                .iter()
                .map(|(from, length, days)| QuietHours {
                    days: std::array::from_fn(|day| days >> day & 1 == 1),
                    from: *from,
                    to: from + length,
                })
                .collect();
            let quiet = |minute: u64| {
                let day = (minute / 1440 + FIRST_DAY) % 7;
                let of_day = (minute % 1440) as u32;
                hours.iter().any(|range| {
                    let today = range.days[day as usize] && (range.from..range.to).contains(&of_day);
                    let before = range.days[((day + 6) % 7) as usize]
                        && (range.from..range.to).contains(&(of_day + MINUTES_OF_DAY));
                    today || before
                })
            };
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(minute * 60 + 30);
            let wanted = quiet(minute).then(|| {
                (minute..minute + u64::from(MINUTES_OF_WEEK)).find(|minute| !quiet(*minute)).map_or(
                    Until::Never,
                    |end| Until::At(SystemTime::UNIX_EPOCH + Duration::from_secs(end * 60)),
                )
            });
            prop_assert_eq!(quiet_until(&hours, now), wanted);
        }
    }
}
