//! Calendar arithmetic for the clock's registers: the proleptic Gregorian calendar, without time
//! zones.

/// A point in time as the registers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    /// Years since the beginning of the century.
    pub(super) year: u8,
    pub(super) century: u8,
}

const SECONDS_PER_DAY: i64 = 86_400;
/// The registers show years 0 to 9999.
const FIRST_DAY: i64 = days_from_civil(0, 1, 1);
const LAST_DAY: i64 = days_from_civil(9999, 12, 31);

impl Calendar {
    /// What the registers show `seconds` after the start of 1970; before year 0 and after 9999 they
    /// show the first and the last day.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(SECONDS_PER_DAY).clamp(FIRST_DAY, LAST_DAY);
        let in_day = seconds.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = civil_from_days(days);
        // 1970-01-01 was a Thursday, the fifth day.
        let weekday = (days + 4).rem_euclid(7) + 1;
        Self {
            second: small(in_day % 60),
            minute: small(in_day / 60 % 60),
            hour: small(in_day / 3600),
            weekday: small(weekday),
            day: small(day),
            month: small(month),
            year: small(year % 100),
            century: small(year / 100),
        }
    }

    /// Seconds since the start of 1970. Fields out of their ranges, which a guest can write, carry
    /// over; what the registers cannot show is cut off.
    pub(super) fn to_seconds(self) -> i64 {
        let year = i64::from(self.century) * 100 + i64::from(self.year);
        let months = i64::from(self.month) - 1;
        let month_start =
            days_from_civil(year + months.div_euclid(12), months.rem_euclid(12) + 1, 1);
        let days = month_start + i64::from(self.day) - 1;
        let minutes = i64::from(self.hour) * 60 + i64::from(self.minute);
        let seconds = days * SECONDS_PER_DAY + minutes * 60 + i64::from(self.second);
        seconds.clamp(FIRST_DAY * SECONDS_PER_DAY, (LAST_DAY + 1) * SECONDS_PER_DAY - 1)
    }
}

/// A number that is known to be below 256.
fn small(number: i64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Days from 1970-01-01 to a date whose month is 1 to 12.
///
/// Years are counted from March, so that the leap day is the last of its year, in eras of 400
/// years, which all have the same number of days.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    // 153 days in every five months from March on.
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The date (year, month, day) so many days after 1970-01-01.
const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
#[path = "calendar_tests.rs"]
mod tests;
