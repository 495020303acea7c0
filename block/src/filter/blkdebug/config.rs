//! Files of rules, as the `config` option names them (QEMU's `docs/devel/blkdebug.txt`): sections
//! `[inject-error]` and `[set-state]` with lines of `name = "value"`.

use std::fs::File;
use std::io::Read;

use serde_json::{Map, Value};

use super::options::{InjectError, SetState};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;

/// Longest file that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The rules of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) inject_error: Vec<InjectError>,
    pub(super) set_state: Vec<SetState>,
}

/// A section under way: its line, its name and its members.
type Section = (usize, String, Map<String, Value>);

impl Config {
    /// Reads the file at `path`.
    pub(super) async fn load(executor: &Executor, path: &str) -> Result<Config> {
        let owned = path.to_owned();
        let read = move || {
            let mut text = String::new();
            File::open(owned)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
            Ok(text)
        };
        let text = executor.engine().blocking(read).await;
        let text = text.map_err(|error| {
            Error::from_io(error, format!("Could not read blkdebug config file '{path}'"))
        })?;
        if text.len() as u64 > MAX_BYTES {
            let text = format!("blkdebug config file '{path}' is longer than {MAX_BYTES} bytes");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Config::parse(&text).map_err(|(line, what)| {
            let text = format!("blkdebug config file '{path}', line {line}: {what}");
            Error::new(ErrorKind::InvalidArgument, text)
        })
    }

    /// Reads what is in such a file; an error is a line and what is wrong there.
    fn parse(text: &str) -> std::result::Result<Config, (usize, String)> {
        let mut config = Config::default();
        let mut section: Option<Section> = None;
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                config.add(section.take())?;
                // An id may follow; nobody asks for it.
                let name = name.split_whitespace().next().unwrap_or_default();
                section = Some((number, name.to_owned(), Map::new()));
                continue;
            }
            let Some((_, _, members)) = &mut section else {
                return Err((number, "no group defined".to_owned()));
            };
            let (name, value) =
                member(line).ok_or_else(|| (number, format!("parse error at '{line}'")))?;
            members.insert(name.to_owned(), value);
        }
        config.add(section)?;
        Ok(config)
    }

    fn add(&mut self, section: Option<Section>) -> std::result::Result<(), (usize, String)> {
        let Some((line, name, members)) = section else { return Ok(()) };
        let members = Value::Object(members);
        let added = match name.as_str() {
            "inject-error" => serde_json::from_value(members).map(|it| self.inject_error.push(it)),
            "set-state" => serde_json::from_value(members).map(|it| self.set_state.push(it)),
            _ => return Err((line, format!("There is no option group '{name}'"))),
        };
        added.map_err(|error| (line, error.to_string()))
    }
}

/// `name = "value"`, where the value may be a number or a switch.
fn member(line: &str) -> Option<(&str, Value)> {
    let (name, value) = line.split_once('=')?;
    let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
    let number = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse::<u64>(),
    };
    let value = match (value, number) {
        (_, Ok(number)) => number.into(),
        ("on", _) => true.into(),
        ("off", _) => false.into(),
        _ => value.into(),
    };
    Some((name.trim(), value))
}

#[cfg(test)]
mod tests {
    use super::super::options::{Event, IoType};
    use super::*;

    #[test]
    fn rules_are_read_as_qemu_reads_them() {
        let text = "# a comment\n[inject-error]\n  event = \"read_aio\"\nerrno=\"0x1c\"\n\
                    once = \"on\"\nsector = \"3\"\niotype = \"read\"\n\n[set-state \"x\"]\n\
                    event = \"write_aio\"\nstate = \"1\"\nnew_state = \"2\"\n";
        let fault = InjectError {
            event: Event::ReadAio,
            errno: Some(28),
            once: Some(true),
            sector: Some(3),
            ..InjectError::every(IoType::Read)
        };
        let change = SetState { event: Event::WriteAio, state: Some(1), new_state: 2 };
        let expected = Config { inject_error: vec![fault], set_state: vec![change] };
        assert_eq!(Config::parse(text).unwrap(), expected);
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for (text, line, what) in [
            ("event = \"none\"", 1, "no group defined"),
            ("\n[foo]", 2, "no option group 'foo'"),
            ("[inject-error]\nevent = none", 2, "parse error"),
            ("[inject-error]\nevent = \"none\"\nfoo = \"1\"", 1, "foo"),
            ("[inject-error]\nevent = \"l2_update\"", 1, "l2_update"),
            ("[inject-error]\nstate = \"1\"", 1, "event"),
            ("[set-state]\nevent = \"none\"\nnew_state = \"x\"", 1, "invalid type"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.0 == line && error.1.contains(what), "{text}: {error:?}");
        }
    }
}
