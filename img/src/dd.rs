//! `dd`: copies a part of an image, with operands `if=`, `of=`, `bs=`, `count=` and `skip=`.

use clap::Args;

use crate::convert::{Copy, Source};
use crate::create::{self, New};
use crate::failure::{Failure, Result};
use crate::naming::Copying;
use crate::progress::Progress;
use crate::session::{Cache, Session};
use crate::size;

/// Requests at once.
const DEPTH: u16 = 8;

/// Arguments of `dd`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Copying,
    /// Format of the target
    #[arg(short = 'O', default_value = "raw")]
    target_format: String,
    /// if=FILE, of=FILE, bs=BYTES (512), count=BLOCKS, skip=BLOCKS
    #[arg(required = true)]
    operands: Vec<String>,
}

/// The operands.
#[derive(Debug, PartialEq)]
struct Operands {
    source: String,
    target: String,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(list: &[String]) -> Result<Operands> {
        let (mut source, mut target) = (None, None);
        let (mut block, mut count, mut skip) = (512, None, 0);
        for operand in list {
            match operand.split_once('=') {
                Some(("if", name)) => source = Some(name.to_owned()),
                Some(("of", name)) => target = Some(name.to_owned()),
                Some(("bs", text)) => block = size::parse(text)?,
                Some(("count", text)) => count = Some(size::parse(text)?),
                Some(("skip", text)) => skip = size::parse(text)?,
                _ => return Err(Failure::new(format!("unrecognized operand {operand}"))),
            }
        }
        let (Some(source), Some(target)) = (source, target) else {
            return Err(Failure::new("Must specify both input and output file names"));
        };
        if !(1..=i32::MAX as u64).contains(&block) {
            return Err(Failure::new("invalid number: 'bs'"));
        }
        Ok(Operands { source, target, block, count, skip })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    let operands = Operands::parse(&arguments.operands)?;
    Session::run(arguments.source.objects(), async |session| {
        let source = session.open(&arguments.source.request(&operands.source)).await?;
        let end = operands.count.map_or(u64::MAX, |count| count.saturating_mul(operands.block));
        let start = operands.skip.saturating_mul(operands.block);
        let past = start > source.len();
        let start = start.min(source.len());
        let part = start..start.saturating_add(end).min(source.len());
        let len = part.end - part.start;
        let new = New {
            name: &operands.target,
            format: &arguments.target_format,
            options: &[],
            size: Some(len),
            backing: None,
            backing_format: None,
            unsafe_backing: false,
            quiet: true,
        };
        let zero = create::create(session, &new).await?;
        if past {
            // As for dd this is no failure: the target is there, and empty.
            crate::say(&format!("{}: cannot skip to specified offset", operands.source));
        }
        let (name, format) = (operands.target.as_str(), arguments.target_format.as_str());
        let target = create::open_target(session, name, format, Cache::default(), false).await?;
        let copy = Copy {
            sources: vec![Source::part(&source, part)],
            target: target.root.clone(),
            len,
            depth: DEPTH,
            ordered: true,
            compressed: false,
            cluster: 1,
            sparse: 4096,
            zero,
            offload: false,
            salvage: false,
            rate: None,
        };
        copy.run(session, &Progress::new(false, len)).await?;
        Ok(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_those_of_dd() {
        let parse =
            |text: &str| Operands::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let expected = Operands {
            source: "a".into(),
            target: "b=c".into(),
            block: 1 << 20,
            count: Some(3),
            skip: 2,
        };
        assert_eq!(parse("if=a of=b=c bs=1M count=3 skip=2").unwrap(), expected);
        for text in ["if=a", "if=a of=b seek=1", "if=a of=b bs=0", "a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
