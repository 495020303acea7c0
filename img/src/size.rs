//! Sizes as people write and read them.

use crate::failure::{Failure, Result};

/// Suffixes in powers of 1024.
const SUFFIXES: [char; 7] = ['b', 'k', 'm', 'g', 't', 'p', 'e'];

/// A size in bytes: a number, with a fraction where a suffix makes sense of it, and a suffix of
/// `b`, `k`, `M`, `G`, `T`, `P` or `E`.
pub(crate) fn parse(text: &str) -> Result<u64> {
    let bad = || {
        Failure::new(format!(
            "Invalid size '{text}': a number is expected that fits 63 bits, with one of the \
             suffixes k, M, G, T, P or E for kilobytes and so on"
        ))
    };
    let (digits, shift) = match text.chars().last().map(|last| last.to_ascii_lowercase()) {
        Some(last) if SUFFIXES.contains(&last) => {
            let place = SUFFIXES.iter().position(|suffix| *suffix == last).unwrap_or(0);
            (&text[..text.len() - 1], 10 * place)
        }
        _ => (text, 0),
    };
    if let Some(hex) = digits.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().ok_or_else(bad);
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |text: &str| match text {
        "" => Ok(0),
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse::<u128>().ok().ok_or_else(bad)
        }
        _ => Err(bad()),
    };
    let is_odd = shift == 0 && fraction.bytes().any(|digit| digit != b'0');
    if whole.is_empty() || fraction.len() > 18 || is_odd {
        return Err(bad());
    }
    let digits = u32::try_from(fraction.len()).unwrap_or(0);
    let part = (number(fraction)? << shift) / 10_u128.pow(digits);
    let bytes = number(whole)?.checked_mul(1 << shift).and_then(|it| it.checked_add(part));
    let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
    bytes.filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(bad)
}

/// Three significant digits and a suffix: `1.27 MiB`.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut unit = 0;
    // The next unit from 1000 on, so that there never are four digits.
    while unit < 6 && u128::from(bytes) >= 1000_u128 << (10 * unit) {
        unit += 1;
    }
    let shift = 10 * unit;
    let whole = bytes >> shift;
    let places = match whole {
        0..10 => 2,
        10..100 => 1,
        _ => 0,
    };
    // To the nearest, and from the middle to the even one, as the C library rounds.
    let scale = 10_u128.pow(places);
    let scaled = u128::from(bytes) * scale;
    let (below, rest, half) = (scaled >> shift, scaled % (1 << shift), (1_u128 << shift) / 2);
    let up = shift > 0 && (rest > half || (rest == half && below % 2 == 1));
    let rounded = below + u128::from(up);
    let (whole, part) = (rounded / scale, rounded % scale);
    let part = match places {
        0 => String::new(),
        places => format!("{part:0width$}", width = places as usize),
    };
    let part = part.trim_end_matches('0');
    let dot = if part.is_empty() { "" } else { "." };
    format!("{whole}{dot}{part} {}B", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("10b", 10),
            ("1024.0", 1024),
            ("1024.0b", 1024),
            ("64k", 65_536),
            ("64K", 65_536),
            ("1.5G", 3 << 29),
            ("0.5k", 512),
            ("2T", 2 << 40),
            ("7E", 7 << 60),
            ("0x1000", 4096),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "k", "-1", "1.5", "1x", "1 k", "8E", "99999999999999999999", ".5k", "1.k2"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_as_qemu_img_shows_them() {
        let cases = [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1024, "1 KiB"),
            (65_536, "64 KiB"),
            (200_704, "196 KiB"),
            (1_335_296, "1.27 MiB"),
            (12_582_912, "12 MiB"),
            (1 << 30, "1 GiB"),
            (10_747_904, "10.2 MiB"),
            (10_852_762, "10.4 MiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
