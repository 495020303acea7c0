//! Carries one scenario out: see the library's `scenario` module.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = ferry_tests::scenario::perform(&words);
    ferry_tests::scenario::Out.end(&outcome);
    ExitCode::from(u8::from(outcome.is_err()))
}
