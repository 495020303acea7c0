//! `bench`: how fast requests to an image are.

use std::cell::Cell;
use std::rc::Rc;

use clap::{Args, ValueEnum};
use ferry_block::{IoBuf, RingChoice, WriteFlags};

use crate::failure::{Failure, Result};
use crate::naming::Reading;
use crate::output::print;
use crate::session::{Access, Cache, Request, Session};
use crate::size;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Reading,
    /// Requests to make
    #[arg(short, default_value_t = 75_000)]
    count: u64,
    /// Requests at once
    #[arg(short, default_value_t = 64)]
    depth: u64,
    /// Flush after so many writes
    #[arg(long, default_value_t = 0)]
    flush_interval: u64,
    /// How requests are made of the host
    #[arg(short = 'i', value_name = "AIO", value_enum, default_value = "native")]
    aio: Aio,
    /// Accepted: flushes never wait for other requests
    #[arg(long)]
    no_drain: bool,
    /// Where to begin
    #[arg(short, default_value = "0")]
    offset: String,
    /// Byte to write
    #[arg(long, default_value_t = 0)]
    pattern: u8,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// Bytes of a request
    #[arg(short = 's', default_value = "4k")]
    size: String,
    /// Bytes from one request to the next (default: those of a request)
    #[arg(short = 'S')]
    step: Option<String>,
    /// Cache mode
    #[arg(short, default_value = "writeback")]
    t: String,
    /// Write instead of reading
    #[arg(short)]
    write: bool,
    /// The image
    filename: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Aio {
    /// By threads that block
    Threads,
    /// By io_uring, or threads where the host refuses it
    Native,
    /// The same as native
    #[value(name = "io_uring")]
    IoUring,
}

impl Aio {
    fn ring(self) -> RingChoice {
        match self {
            Aio::Threads => RingChoice::ThreadPool,
            Aio::Native | Aio::IoUring => RingChoice::Auto,
        }
    }
}

/// The requests to make.
struct Plan {
    len: usize,
    step: u64,
    end: u64,
    count: u64,
    /// Requests begun, and where the next one goes.
    begun: Cell<u64>,
    next: Cell<u64>,
    pattern: u8,
    write: bool,
    how: WriteFlags,
    flush_interval: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    if arguments.flush_interval > 0 && !arguments.write {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    if arguments.flush_interval > 0 && arguments.flush_interval < arguments.depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    let (offset, len) = (size::parse(&arguments.offset)?, size::parse(&arguments.size)?);
    let step = arguments.step.as_deref().map_or(Ok(len), size::parse)?;
    Session::run_on(arguments.aio.ring(), arguments.image.objects(), async |session| {
        let cache = Cache::parse(&arguments.t)?;
        let access = arguments.write.then_some(Access::Write);
        let request = arguments.image.request(&arguments.filename, access);
        let image = session.open(&Request { cache, ..request }).await?;
        let bytes = usize::try_from(len).ok().filter(|len| *len > 0);
        let Some(bytes) = bytes.filter(|_| offset.saturating_add(len) <= image.len()) else {
            return Err(Failure::new("a request does not fit the image"));
        };
        if !arguments.quiet {
            print(format!(
                "Sending {} {} requests, {len} bytes each, {} in parallel (starting at offset \
                 {offset}, step size {step})",
                arguments.count,
                if arguments.write { "write" } else { "read" },
                arguments.depth
            ))?;
        }
        let plan = Rc::new(Plan {
            len: bytes,
            step,
            end: image.len(),
            count: arguments.count,
            begun: Cell::new(0),
            next: Cell::new(offset),
            pattern: arguments.pattern,
            write: arguments.write,
            how: WriteFlags { fua: cache.writethrough, ..WriteFlags::NONE },
            flush_interval: arguments.flush_interval,
        });
        let executor = session.graph.executor();
        let started = executor.clock().now();
        let workers: Vec<_> = (0..arguments.depth.min(arguments.count))
            .map(|_| {
                let (plan, root) = (Rc::clone(&plan), image.root.clone());
                executor.spawn(async move { plan.work(&root).await })
            })
            .collect();
        for worker in workers {
            worker.await?;
        }
        if !arguments.quiet {
            let ns = executor.clock().now() - started;
            let (seconds, ms) = (ns / 1_000_000_000, ns / 1_000_000 % 1000);
            print(format!("Run completed in {seconds}.{ms:03} seconds."))?;
        }
        Ok(0)
    })
}

impl Plan {
    async fn work(&self, root: &ferry_block::BlockBackend) -> Result<()> {
        let buf = IoBuf::from_vec(&vec![self.pattern; self.len]);
        while self.begun.get() < self.count {
            let number = self.begun.get() + 1;
            self.begun.set(number);
            let at = self.next.get();
            let next = at.saturating_add(self.step);
            let fits = next.saturating_add(self.len as u64) <= self.end;
            self.next.set(if fits { next } else { 0 });
            if self.write {
                root.write(at, buf.clone(), self.how).await?;
                if self.flush_interval > 0 && number.is_multiple_of(self.flush_interval) {
                    root.flush().await?;
                }
            } else {
                root.read(at, buf.clone()).await?;
            }
        }
        Ok(())
    }
}
