//! Makes a JSON value of the tokens of one message.
//!
//! Recursive: [`super::Limits::nesting`] bounds the depth before this code sees the tokens.

use std::ops::Range;

use serde_json::{Map, Number, Value};

use super::lexer::Kind;
use crate::error::QmpError;

/// The tokens of one message and the bytes they are made of.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    text: Vec<u8>,
    tokens: Vec<(Kind, Range<usize>)>,
}

impl Tokens {
    /// Forgets everything. Keeps little memory, so that one long message is not paid for forever.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(16 << 10);
        self.tokens.clear();
        self.tokens.shrink_to(1 << 10);
    }

    /// Adds a byte to the token under way.
    pub(super) fn take(&mut self, byte: u8) {
        self.text.push(byte);
    }

    /// Ends the token under way.
    pub(super) fn end(&mut self, kind: Kind) {
        let start = self.tokens.last().map_or(0, |(_, range)| range.end);
        self.tokens.push((kind, start..self.text.len()));
    }

    /// Bytes taken so far.
    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Tokens ended so far.
    pub(super) fn count(&self) -> usize {
        self.tokens.len()
    }

    /// The bytes since the last token ended: a stray one, when that is what they were.
    pub(super) fn unfinished(&self) -> &[u8] {
        let start = self.tokens.last().map_or(0, |(_, range)| range.end);
        self.text.get(start..).unwrap_or_default()
    }

    /// The value that the tokens make.
    ///
    /// # Errors
    /// The error reply that the message gets.
    pub(super) fn parse(&self) -> Result<Value, QmpError> {
        Parser { tokens: self, next: 0 }.value()
    }
}

struct Parser<'a> {
    tokens: &'a Tokens,
    next: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Kind> {
        self.tokens.tokens.get(self.next).map(|(kind, _)| *kind)
    }

    fn pop(&mut self) -> Result<(Kind, &'a [u8]), QmpError> {
        let Some((kind, range)) = self.tokens.tokens.get(self.next) else {
            return Err(QmpError::json_syntax("premature EOI"));
        };
        self.next += 1;
        Ok((*kind, self.tokens.text.get(range.clone()).unwrap_or_default()))
    }

    fn value(&mut self) -> Result<Value, QmpError> {
        let (kind, text) = self.pop()?;
        match kind {
            Kind::OpenBrace => self.object(),
            Kind::OpenBracket => self.list(),
            Kind::String => string(text).map(Value::String),
            Kind::Integer | Kind::Float => number(kind, text),
            Kind::Keyword => match text {
                b"true" => Ok(Value::Bool(true)),
                b"false" => Ok(Value::Bool(false)),
                b"null" => Ok(Value::Null),
                _ => {
                    let word = String::from_utf8_lossy(text);
                    Err(QmpError::json_syntax(format_args!("invalid keyword '{word}'")))
                }
            },
            Kind::CloseBrace | Kind::CloseBracket | Kind::Colon | Kind::Comma | Kind::Stray => {
                Err(QmpError::json_syntax("expecting value"))
            }
        }
    }

    fn object(&mut self) -> Result<Value, QmpError> {
        let mut members = Map::new();
        if self.peek() == Some(Kind::CloseBrace) {
            self.next += 1;
            return Ok(Value::Object(members));
        }
        loop {
            let Value::String(key) = self.value()? else {
                return Err(QmpError::json_syntax("key is not a string in object"));
            };
            if self.pop()?.0 != Kind::Colon {
                return Err(QmpError::json_syntax("missing : in object pair"));
            }
            let value = self.value()?;
            if members.insert(key, value).is_some() {
                return Err(QmpError::json_syntax("duplicate key"));
            }
            match self.pop()?.0 {
                Kind::CloseBrace => return Ok(Value::Object(members)),
                Kind::Comma => {}
                _ => return Err(QmpError::json_syntax("expected separator in dict")),
            }
        }
    }

    fn list(&mut self) -> Result<Value, QmpError> {
        let mut elements = Vec::new();
        if self.peek() == Some(Kind::CloseBracket) {
            self.next += 1;
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value()?);
            match self.pop()?.0 {
                Kind::CloseBracket => return Ok(Value::Array(elements)),
                Kind::Comma => {}
                _ => return Err(QmpError::json_syntax("expected separator in list")),
            }
        }
    }
}

/// Integers that fit stay exact; all others become floating point, as everywhere in QMP.
fn number(kind: Kind, text: &[u8]) -> Result<Value, QmpError> {
    let text = String::from_utf8_lossy(text);
    if kind == Kind::Integer {
        if let Ok(value) = text.parse::<i64>() {
            return Ok(value.into());
        }
        if let Ok(value) = text.parse::<u64>() {
            return Ok(value.into());
        }
    }
    let value = text.parse().ok().and_then(Number::from_f64).map(Value::Number);
    value.ok_or_else(|| QmpError::json_syntax(format_args!("number out of range '{text}'")))
}

/// Decodes a string token: quotes, escapes, UTF-8.
fn string(token: &[u8]) -> Result<String, QmpError> {
    let inner = token.get(1..token.len().saturating_sub(1)).unwrap_or_default();
    let mut out = String::with_capacity(inner.len());
    let mut at = 0;
    while let Some(&byte) = inner.get(at) {
        if byte == b'\\' {
            // The error text shows what follows the backslash, the closing quote included.
            let rest = token.get(at + 1..).unwrap_or_default();
            at += escape(rest, &mut out)?;
        } else {
            let plain = inner.get(at..).unwrap_or_default();
            let end = plain.iter().position(|b| *b == b'\\').unwrap_or(plain.len());
            push_utf8(plain.get(..end).unwrap_or_default(), &mut out)?;
            at += end;
        }
    }
    Ok(out)
}

/// Decodes one escape at the start of `text`, gives its length.
fn escape(text: &[u8], out: &mut String) -> Result<usize, QmpError> {
    let plain = match text.get(1) {
        Some(quote @ (b'"' | b'\'' | b'\\' | b'/')) => char::from(*quote),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unicode_escape(text, out),
        _ => return Err(QmpError::json_syntax("invalid escape sequence in string")),
    };
    out.push(plain);
    Ok(2)
}

/// `\uXXXX`, or two of them that make a surrogate pair.
fn unicode_escape(text: &[u8], out: &mut String) -> Result<usize, QmpError> {
    let decoded = match code_unit(text) {
        Some(high @ 0xD800..=0xDBFF) => match text.get(6..).and_then(code_unit) {
            Some(low @ 0xDC00..=0xDFFF) => {
                Some((0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00), 12))
            }
            _ => None,
        },
        Some(unit) => Some((unit, 6)),
        None => None,
    };
    let character = decoded.and_then(|(code, length)| Some((char::from_u32(code)?, length)));
    match character.filter(|(c, _)| !is_noncharacter(*c)) {
        Some((c, length)) => {
            out.push(c);
            Ok(length)
        }
        None => {
            let shown = String::from_utf8_lossy(text.get(..6).unwrap_or(text));
            Err(QmpError::json_syntax(format_args!("{shown} is not a valid Unicode character")))
        }
    }
}

/// The number in `\uXXXX`.
fn code_unit(text: &[u8]) -> Option<u32> {
    let digits = text.strip_prefix(br"\u")?.get(..4)?;
    digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
}

/// Unicode's 66 code points that are never characters; QMP refuses them.
fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

/// UTF-8 as QMP has it: NUL may be written in two bytes, non-characters are refused.
fn push_utf8(bytes: &[u8], out: &mut String) -> Result<(), QmpError> {
    let invalid = || QmpError::json_syntax("invalid UTF-8 sequence in string");
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|w| w == [0xC0, 0x80]).unwrap_or(rest.len());
        let plain = std::str::from_utf8(rest.get(..end).unwrap_or_default());
        let plain = plain.map_err(|_not_utf8| invalid())?;
        if plain.chars().any(is_noncharacter) {
            return Err(invalid());
        }
        out.push_str(plain);
        if end < rest.len() {
            out.push('\0');
        }
        rest = rest.get(end + 2..).unwrap_or_default();
    }
    Ok(())
}
