//! Times as people and machines read them: RFC 3339, UTC, microseconds.

use std::io::{self, Write};

const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// `2026-11-22T10:00:00.072385Z`. Any number of nanoseconds since 1970 is a time: the years 1677 to 2262.
pub(super) fn write_rfc3339(out: &mut impl Write, nanos: i64) -> io::Result<()> {
    let seconds = nanos.div_euclid(NANOS);
    let micros = nanos.rem_euclid(NANOS) / 1000;
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let second = seconds.rem_euclid(DAY);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    for (at, digits, value) in [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 6, micros),
    ] {
        let mut rest = value;
        for place in text[at..at + digits].iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
    out.write_all(&text)
}

/// Year, month and day of a day since 1970, in the proleptic Gregorian calendar. Years run from March, so
/// that the leap day is the last of its year.
const fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + (month <= 2) as i64, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(nanos: i64) -> String {
        let mut out = Vec::new();
        write_rfc3339(&mut out, nanos).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_times() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(text(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(text(951_782_400_123_456_789), "2000-02-29T00:00:00.123456Z");
        assert_eq!(text(4_102_444_799_000_000_000), "2099-12-31T23:59:59.000000Z");
        assert_eq!(text(i64::MAX), "2262-04-11T23:47:16.854775Z");
        assert_eq!(text(i64::MIN), "1677-09-21T00:12:43.145224Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = civil(-150_000);
        for n in -149_999..150_000 {
            let next = civil(n);
            let ok =
                next == (year, month, day + 1) || next == (year, month + 1, 1) || next == (year + 1, 1, 1);
            assert!(ok, "{next:?} after {:?}", (year, month, day));
            (year, month, day) = next;
        }
    }
}
