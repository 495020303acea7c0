//! The server word by word, with extended headers.

use std::io::Write;
use std::path::Path;

use super::wire_tests::{Wire, converse, long, word};

const READ: u16 = 0;
const WRITE: u16 = 1;
const PAYLOAD_LEN: u16 = 1 << 5;
const EINVAL: u32 = 22;
const DONE: u16 = 1;

/// What each chunk says of the request that it answers.
#[derive(Debug, PartialEq, Eq)]
struct Chunk {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    payload: Vec<u8>,
}

struct Extended(Wire);

impl Extended {
    fn connect(path: &Path) -> Extended {
        Extended(Wire::connect_with(path, "rw", 11))
    }

    /// Sends a request with what follows it, and takes the first chunk of the reply.
    fn ask(&mut self, flags: u16, command: u16, offset: u64, len: u64, rest: &[u8]) -> Chunk {
        let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
        bytes.extend([flags.to_be_bytes(), command.to_be_bytes()].concat());
        bytes.extend([9, offset, len].map(u64::to_be_bytes).concat());
        bytes.extend(rest);
        self.0.stream.write_all(&bytes).unwrap();
        let head = self.0.take(32);
        assert_eq!(word(&head), 0x6e8a_278c);
        let payload = self.0.take(usize::try_from(long(&head[24..])).unwrap());
        let short = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let (cookie, offset) = (long(&head[8..]), long(&head[16..]));
        Chunk { flags: short(4), kind: short(6), cookie, offset, payload }
    }
}

#[test]
fn a_reply_says_where_its_request_began() {
    converse(|path| {
        let mut wire = Extended::connect(path);
        let Chunk { payload, offset, .. } = wire.ask(0, READ, (1 << 20) + 512, 512, &[]);
        assert_eq!((offset, long(&payload), payload.len()), ((1 << 20) + 512, offset, 520));
        let written = wire.ask(PAYLOAD_LEN, WRITE, 8192, 512, &[0xa5; 512]);
        let done = Chunk { flags: DONE, kind: 0, cookie: 9, offset: 8192, payload: vec![] };
        assert_eq!(written, done);
        let refused = wire.ask(0, READ, u64::MAX, 512, &[]);
        assert_eq!((refused.offset, word(&refused.payload)), (u64::MAX, EINVAL));
    });
}

/// What carries nothing is no write, and what is said of it ends there: the next request follows.
#[test]
fn a_write_without_payload_is_refused() {
    let disk = converse(|path| {
        let mut wire = Extended::connect(path);
        let refused = wire.ask(0, WRITE, 4096, 512, &[]);
        assert_eq!((refused.flags, refused.kind >> 15), (DONE, 1));
        assert_eq!(word(&refused.payload), EINVAL);
        let next = wire.ask(PAYLOAD_LEN, WRITE, 8192, 512, &[0xa5; 512]);
        assert_eq!((next.kind, next.offset), (0, 8192));
    });
    assert_eq!(disk.contents()[4096..4608], [0; 512]);
    assert_eq!(disk.contents()[8192..8704], [0xa5; 512]);
}
