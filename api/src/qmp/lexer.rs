//! Cuts bytes into JSON tokens, one byte at a time, whatever the chunks they come in.
//!
//! It accepts what QMP accepts: JSON, and single quotes around strings. Where a byte cannot go on, the
//! token so far including that byte is a *stray* one, and everything up to a place where a new
//! message may begin is skipped: a control character, or one of `{ } [ ] : ,`.

/// The kinds of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `{`
    OpenBrace,
    /// `}`
    CloseBrace,
    /// `[`
    OpenBracket,
    /// `]`
    CloseBracket,
    /// `:`
    Colon,
    /// `,`
    Comma,
    /// A number without fraction and exponent.
    Integer,
    /// Any other number.
    Float,
    /// Lower-case letters: `true`, `false`, `null` or a mistake.
    Keyword,
    /// A string with its quotes, escapes not yet looked at.
    String,
    /// Bytes that are no token.
    Stray,
}

/// What became of one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing of interest: white space, or bytes skipped after a stray token.
    Skip,
    /// The byte belongs to the token under way.
    Take,
    /// The byte ends the token and belongs to it.
    TakeLast(Kind),
    /// The token under way ended before this byte; offer the byte again.
    EndBefore(Kind),
}

/// Where in a token we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Between tokens.
    #[default]
    Between,
    /// After a stray token.
    Recover,
    /// In a string with this quote.
    InString(u8),
    /// After a backslash in a string with this quote.
    Escape(u8),
    /// After `-`: a digit must follow.
    Minus,
    /// After a leading `0`: no digit may follow.
    Zero,
    /// In the digits before the point.
    Digits,
    /// After the point: a digit must follow.
    Point,
    /// In the digits after the point.
    Fraction,
    /// After `e`: a sign or a digit must follow.
    Exponent,
    /// After the exponent's sign: a digit must follow.
    ExponentSign,
    /// In the exponent's digits.
    ExponentDigits,
    /// In a word.
    Word,
}

/// The automaton.
#[derive(Debug, Default)]
pub(super) struct Lexer {
    state: State,
}

impl Lexer {
    /// Forgets the token under way.
    pub(super) fn reset(&mut self) {
        self.state = State::Between;
    }

    /// Looks at the next byte.
    pub(super) fn step(&mut self, byte: u8) -> Step {
        match self.state {
            State::Between => self.between(byte),
            State::Recover => self.recover(byte),
            State::InString(quote) => self.in_string(quote, byte),
            State::Escape(quote) => match byte {
                0x20..=0xFD => self.go(State::InString(quote)),
                _ => self.stray(),
            },
            State::Minus => match byte {
                b'0' => self.go(State::Zero),
                b'1'..=b'9' => self.go(State::Digits),
                _ => self.stray(),
            },
            State::Zero => match byte {
                b'0'..=b'9' => self.stray(),
                _ => self.after_integer(byte),
            },
            State::Digits => match byte {
                b'0'..=b'9' => Step::Take,
                _ => self.after_integer(byte),
            },
            State::Point => self.digit_or_stray(byte, State::Fraction),
            State::Fraction => match byte {
                b'0'..=b'9' => Step::Take,
                b'e' | b'E' => self.go(State::Exponent),
                _ => self.end_before(Kind::Float),
            },
            State::Exponent => match byte {
                b'+' | b'-' => self.go(State::ExponentSign),
                _ => self.digit_or_stray(byte, State::ExponentDigits),
            },
            State::ExponentSign => self.digit_or_stray(byte, State::ExponentDigits),
            State::ExponentDigits => match byte {
                b'0'..=b'9' => Step::Take,
                _ => self.end_before(Kind::Float),
            },
            State::Word => match byte {
                b'a'..=b'z' => Step::Take,
                _ => self.end_before(Kind::Keyword),
            },
        }
    }

    fn between(&mut self, byte: u8) -> Step {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => Step::Skip,
            b'{' => Step::TakeLast(Kind::OpenBrace),
            b'}' => Step::TakeLast(Kind::CloseBrace),
            b'[' => Step::TakeLast(Kind::OpenBracket),
            b']' => Step::TakeLast(Kind::CloseBracket),
            b':' => Step::TakeLast(Kind::Colon),
            b',' => Step::TakeLast(Kind::Comma),
            b'"' | b'\'' => self.go(State::InString(byte)),
            b'-' => self.go(State::Minus),
            b'0' => self.go(State::Zero),
            b'1'..=b'9' => self.go(State::Digits),
            b'a'..=b'z' => self.go(State::Word),
            _ => self.stray(),
        }
    }

    fn recover(&mut self, byte: u8) -> Step {
        let skipped = match byte {
            b'{' | b'}' | b'[' | b']' | b':' | b',' => false,
            b'\t' | 0x20..=0xFD => true,
            _ => false,
        };
        if skipped {
            return Step::Skip;
        }
        self.state = State::Between;
        self.between(byte)
    }

    fn in_string(&mut self, quote: u8, byte: u8) -> Step {
        match byte {
            b'\\' => self.go(State::Escape(quote)),
            _ if byte == quote => {
                self.state = State::Between;
                Step::TakeLast(Kind::String)
            }
            0x20..=0xFD => Step::Take,
            _ => self.stray(),
        }
    }

    fn after_integer(&mut self, byte: u8) -> Step {
        match byte {
            b'.' => self.go(State::Point),
            b'e' | b'E' => self.go(State::Exponent),
            _ => self.end_before(Kind::Integer),
        }
    }

    fn digit_or_stray(&mut self, byte: u8, then: State) -> Step {
        if byte.is_ascii_digit() { self.go(then) } else { self.stray() }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::Take
    }

    fn end_before(&mut self, kind: Kind) -> Step {
        self.state = State::Between;
        Step::EndBefore(kind)
    }

    fn stray(&mut self) -> Step {
        self.state = State::Recover;
        Step::TakeLast(Kind::Stray)
    }
}
