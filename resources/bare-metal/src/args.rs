//! The command line: words of the form `name=value`; unknown words are left alone.

/// A copy of the command line.
#[derive(Clone, Copy)]
pub struct Args {
    text: [u8; Args::LONGEST],
    len: usize,
}

impl Args {
    /// Longer lines are cut off here.
    pub const LONGEST: usize = 2048;

    /// Copies a command line.
    pub fn new(line: &[u8]) -> Args {
        let len = line.len().min(Args::LONGEST);
        let mut text = [0; Args::LONGEST];
        text[..len].copy_from_slice(&line[..len]);
        Args { text, len }
    }

    fn line(&self) -> &str {
        core::str::from_utf8(&self.text[..self.len]).unwrap_or("")
    }

    /// The value of a word; the last one of a name counts.
    pub fn text(&self, name: &str) -> Option<&str> {
        let mut words =
            self.line().split_ascii_whitespace().filter_map(|word| word.split_once('='));
        words.rfind(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// A number (decimal or 0x hexadecimal), or what stands in for a missing one.
    pub fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.text(name).and_then(parse_number).unwrap_or(otherwise)
    }

    /// Whether a comma-separated word contains an item.
    pub fn has(&self, name: &str, item: &str) -> bool {
        self.text(name).is_some_and(|list| list.split(',').any(|each| each == item))
    }
}

/// A decimal or 0x-hexadecimal number.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
