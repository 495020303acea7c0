use proptest::prelude::*;

use super::*;

fn date(seconds: i64) -> String {
    let c = Calendar::from_seconds(seconds);
    format!(
        "{:02}{:02}-{:02}-{:02} {:02}:{:02}:{:02} {}",
        c.century, c.year, c.month, c.day, c.hour, c.minute, c.second, c.weekday
    )
}

/// Expected values from `date -u -d @SECONDS`.
#[test]
fn known_dates() {
    for (seconds, expected) in [
        (0, "1970-01-01 00:00:00 5"),
        (951_782_399, "2000-02-28 23:59:59 2"),
        (951_782_400, "2000-02-29 00:00:00 3"),
        (1_709_251_199, "2024-02-29 23:59:59 5"),
        (4_107_542_400, "2100-03-01 00:00:00 2"),
        (-1, "1969-12-31 23:59:59 4"),
        (1_767_225_599, "2025-12-31 23:59:59 4"),
        (253_402_300_799, "9999-12-31 23:59:59 6"),
    ] {
        assert_eq!(date(seconds), expected);
        assert_eq!(Calendar::from_seconds(seconds).to_seconds(), seconds);
    }
}

#[test]
fn times_that_the_registers_cannot_show_are_cut_off() {
    assert!(date(i64::MAX).starts_with("9999-12-31"));
    assert!(date(i64::MIN).starts_with("0000-01-01"));
}

proptest! {
    #[test]
    fn there_and_back(seconds in -62_167_219_200i64..253_402_300_800) {
        prop_assert_eq!(Calendar::from_seconds(seconds).to_seconds(), seconds);
    }

    /// A guest can write anything into the registers.
    #[test]
    fn any_fields_are_a_time(fields in any::<[u8; 8]>()) {
        let [second, minute, hour, weekday, day, month, year, century] = fields;
        let time = Calendar { second, minute, hour, weekday, day, month, year, century };
        let seconds = time.to_seconds();
        prop_assert!((-62_167_219_200..253_402_300_800).contains(&seconds));
    }
}
