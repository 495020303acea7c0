//! The limit of a server: one thread that receives, reads or writes a file, and replies, with nothing between.
//!
//! It speaks no more of the protocol (`doc/proto.md` of the NBD project) than fio needs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use ferry_tests::time;
use tempfile::TempDir;

const SOCKET: &str = "nbd";
pub(super) const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
/// `NBD_FLAG_FIXED_NEWSTYLE` and `NBD_FLAG_NO_ZEROES`.
pub(super) const HANDSHAKE_FLAGS: u16 = 3;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const OPT_GO: u32 = 7;
pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// `NBD_FLAG_HAS_FLAGS`.
const EXPORT_FLAGS: u16 = 1;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const REPLY_MAGIC: u32 = 0x6744_6698;
const REQUEST_LEN: usize = 28;
pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISC: u16 = 2;
/// What is received at once, bytes: 32 writes of 4 KiB and more.
const BUFFER: usize = 256 << 10;

/// Serves one client after the other.
pub(super) struct Bare {
    folder: TempDir,
    ending: Arc<AtomicBool>,
    /// The seconds of processor time that it took.
    thread: JoinHandle<Result<f64>>,
}

impl Bare {
    /// Starts to serve a raw file.
    pub(super) fn start(path: &Path) -> Result<Bare> {
        let folder = tempfile::tempdir()?;
        let listener = UnixListener::bind(folder.path().join(SOCKET))?;
        let file = File::options().read(true).write(true).open(path)?;
        let ending = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ending);
        let thread = time::spawn("bare-nbd", move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                serve(&stream?, &file)?;
            }
            processor_time()
        });
        Ok(Bare { folder, ending, thread })
    }

    /// Where clients find it.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Ends, after the clients that it has: the seconds of processor time that it took, or the error that
    /// one of them met.
    pub(super) fn end(self) -> Result<f64> {
        self.ending.store(true, Ordering::Relaxed);
        // Only to wake it. Where that fails it has ended with an error.
        UnixStream::connect(self.socket()).ok();
        self.thread.join().ok().context("the bare server has panicked")?
    }
}

/// What this thread took so far, seconds.
fn processor_time() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    // Documentation/scheduler/sched-stats.rst: the first field is the time on a processor, ns.
    let ns = text.split_ascii_whitespace().next().context("schedstat is empty")?;
    Ok(ns.parse::<f64>()? / 1e9)
}

fn serve(stream: &UnixStream, file: &File) -> Result<()> {
    greet(stream, file.metadata()?.len())?;
    let (mut input, mut output) = (BufReader::with_capacity(BUFFER, stream), stream);
    let (mut replies, mut payload) = (Vec::new(), Vec::new());
    loop {
        if input.buffer().len() < REQUEST_LEN {
            output.write_all(&replies)?;
            replies.clear();
        }
        // fio leaves without a word when all it wanted is the size.
        if input.fill_buf()?.is_empty() {
            return Ok(());
        }
        let magic = u32(&mut input)?;
        ensure!(magic == REQUEST_MAGIC, "{magic:#x} is not the magic of a request");
        let [_flags, command] = [u16(&mut input)?, u16(&mut input)?];
        let (cookie, at) = (u64(&mut input)?, u64(&mut input)?);
        let len = usize::try_from(u32(&mut input)?)?;
        if command == CMD_DISC {
            return Ok(());
        }
        replies.extend(REPLY_MAGIC.to_be_bytes());
        replies.extend(0_u32.to_be_bytes());
        replies.extend(cookie.to_be_bytes());
        match command {
            CMD_READ => {
                let start = replies.len();
                replies.resize(start + len, 0);
                file.read_exact_at(&mut replies[start..], at)?;
            }
            CMD_WRITE if input.buffer().len() >= len => {
                file.write_all_at(&input.buffer()[..len], at)?;
                input.consume(len);
            }
            CMD_WRITE => {
                payload.resize(len, 0);
                input.read_exact(&mut payload)?;
                file.write_all_at(&payload, at)?;
            }
            other => bail!("nobody asks a bare server for command {other}"),
        }
    }
}

fn greet(mut stream: &UnixStream, size: u64) -> Result<()> {
    stream.write_all(GREETING)?;
    stream.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
    let _client_flags = u32(&mut stream)?;
    loop {
        let magic = u64(&mut stream)?;
        ensure!(&magic.to_be_bytes() == b"IHAVEOPT", "{magic:#x} is not the magic of an option");
        let (option, len) = (u32(&mut stream)?, u32(&mut stream)?);
        std::io::copy(&mut stream.take(len.into()), &mut std::io::sink())?;
        if option != OPT_GO {
            answer(stream, option, REP_ERR_UNSUP, &[])?;
            continue;
        }
        // NBD_INFO_EXPORT is information number 0.
        let export = [&[0; 2][..], &size.to_be_bytes(), &EXPORT_FLAGS.to_be_bytes()].concat();
        answer(stream, option, REP_INFO, &export)?;
        return answer(stream, option, REP_ACK, &[]);
    }
}

fn answer(mut stream: &UnixStream, option: u32, kind: u32, data: &[u8]) -> Result<()> {
    let len = u32::try_from(data.len())?;
    stream.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
    stream.write_all(&[option, kind, len].map(u32::to_be_bytes).concat())?;
    Ok(stream.write_all(data)?)
}

fn bytes<const N: usize>(input: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn u16(input: &mut impl Read) -> Result<u16> {
    bytes(input).map(u16::from_be_bytes)
}

pub(super) fn u32(input: &mut impl Read) -> Result<u32> {
    bytes(input).map(u32::from_be_bytes)
}

pub(super) fn u64(input: &mut impl Read) -> Result<u64> {
    bytes(input).map(u64::from_be_bytes)
}
