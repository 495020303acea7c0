//! A client that keeps a server busy and costs little: what it owes a batch of replies, the next requests, leaves in
//! one system call. fio sends each request by itself, which holds up the fastest servers and itself.
//!
//! It speaks no more of the protocol (`doc/proto.md` of the NBD project) than reading and writing takes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferry_tests::time;

use super::Load;
use super::bare::{
    CMD_DISC, CMD_READ, CMD_WRITE, GREETING, HANDSHAKE_FLAGS, OPT_GO, OPTION_REPLY_MAGIC, REP_ACK,
    REP_INFO, REPLY_MAGIC, REQUEST_MAGIC, u16, u32, u64,
};

/// Magic, error and cookie.
const REPLY_LEN: usize = 16;
/// What is received at once, bytes: 32 replies to reads of 4 KiB and more.
const BUFFER: usize = 256 << 10;

/// Requests a second at random places, and how many requests in all.
pub(super) fn run(socket: &Path, load: Load, seconds: u64) -> Result<(f64, f64)> {
    let mut stream = UnixStream::connect(socket)?;
    let size = greet(&mut stream).context("cannot greet the server")?;
    let mut client = Client::new(load, size)?;
    let (started, limit) = (time::now(), Duration::from_secs(seconds));
    let (mut received, mut filled) = (vec![0; BUFFER], 0);
    let (mut asked, mut answered) = (0, 0);
    // Until the last reply: whoever left before would break the pipe of a server that answers.
    loop {
        let owed = if started.elapsed() < limit { load.depth - (asked - answered) } else { 0 };
        for _ in 0..owed {
            client.ask();
        }
        asked += owed;
        if answered == asked {
            break;
        }
        stream.write_all(&client.requests)?;
        client.requests.clear();
        let count = stream.read(&mut received[filled..])?;
        ensure!(count != 0, "the server has left");
        filled += count;
        let mut at = 0;
        while let Some(reply) = received[at..filled].get(..client.reply_len) {
            let (magic, mut error) = reply.split_at(4);
            ensure!(magic == REPLY_MAGIC.to_be_bytes(), "a reply begins with {magic:?}");
            let error = u32(&mut error)?;
            ensure!(error == 0, "the server answers with error {error}");
            at += client.reply_len;
            answered += 1;
        }
        received.copy_within(at..filled, 0);
        filled -= at;
    }
    let done = f64::from(u32::try_from(answered)?);
    client.request(CMD_DISC, 0, 0);
    stream.write_all(&client.requests)?;
    Ok((done / started.elapsed().as_secs_f64(), done))
}

struct Client {
    command: u16,
    len: u32,
    /// What is written, each time the same.
    payload: Vec<u8>,
    reply_len: usize,
    /// How many places there are.
    places: u64,
    random: u64,
    /// What is to be sent.
    requests: Vec<u8>,
}

impl Client {
    fn new(load: Load, size: u64) -> Result<Client> {
        let reads = load.rw == "randread";
        let len = usize::try_from(load.bytes)?;
        Ok(Client {
            command: if reads { CMD_READ } else { CMD_WRITE },
            len: u32::try_from(load.bytes)?,
            payload: if reads { Vec::new() } else { vec![0x5a; len] },
            reply_len: REPLY_LEN + if reads { len } else { 0 },
            places: size / load.bytes,
            random: 1,
            requests: Vec::new(),
        })
    }

    /// Adds a request at a random place.
    fn ask(&mut self) {
        // Knuth's linear congruential generator (MMIX); its upper half is the better one.
        self.random =
            self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let place = (self.random >> 32) % self.places;
        self.request(self.command, place * u64::from(self.len), self.len);
        self.requests.extend_from_slice(&self.payload);
    }

    fn request(&mut self, command: u16, at: u64, len: u32) {
        let out = &mut self.requests;
        out.extend(REQUEST_MAGIC.to_be_bytes());
        out.extend(0_u16.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(0_u64.to_be_bytes());
        out.extend(at.to_be_bytes());
        out.extend(len.to_be_bytes());
    }
}

/// Asks for the default export; its length in bytes.
fn greet(mut stream: &mut UnixStream) -> Result<u64> {
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    ensure!(&greeting == GREETING, "it is no NBD server");
    u16(&mut stream)?;
    stream.write_all(&u32::from(HANDSHAKE_FLAGS).to_be_bytes())?;
    // The default export has an empty name; no more information is asked for.
    let data = [0; 6];
    stream.write_all(b"IHAVEOPT")?;
    stream.write_all(&[OPT_GO.to_be_bytes(), 6_u32.to_be_bytes()].concat())?;
    stream.write_all(&data)?;
    let mut size = None;
    loop {
        let magic = u64(&mut stream)?;
        ensure!(magic == OPTION_REPLY_MAGIC, "{magic:#x} is not the magic of an answer");
        let [_option, kind, len] = [u32(&mut stream)?, u32(&mut stream)?, u32(&mut stream)?];
        let mut data = vec![0; usize::try_from(len)?];
        stream.read_exact(&mut data)?;
        match kind {
            REP_ACK => return size.context("the server does not tell the size"),
            // NBD_INFO_EXPORT is information number 0.
            REP_INFO if data.starts_with(&[0, 0]) => size = Some(u64(&mut &data[2..])?),
            REP_INFO => {}
            other => bail!("the server refuses the export: {other:#x}"),
        }
    }
}
