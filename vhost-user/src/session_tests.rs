#![expect(clippy::cast_possible_truncation, reason = "tests count small things")]

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use crate::front_end::{FrontEnd, NEEDED, UNUSED, against_export};
use crate::testing::{AVAIL, DATA, DESC, DISK, MEMORY, STATUS, USED, USER, addresses, ring, words};
use crate::wire::feature;

fn run(front: impl FnOnce(&Path) + Send + 'static) {
    against_export(|_| {}, front, |_, _| {});
}

/// Writes 4 KiB and reads them again.
fn works(front: &mut FrontEnd) {
    for (kind, fill) in [(1, 0x5a_u8), (0, 0)] {
        let before = front.used();
        front.memory.write_slice(&[fill; 4096], GuestAddress(DATA)).unwrap();
        front.request(kind, 8);
        front.wait_event(&front.call);
        assert_eq!((front.used(), front.status()), (before.wrapping_add(1), 0));
    }
    let mut data = [0; 4096];
    front.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    assert_eq!(data, [0x5a; 4096]);
}

#[test]
fn a_ring_is_served_stopped_and_served_again() {
    run(|socket| {
        let mut front = FrontEnd::up(socket);
        works(&mut front);
        assert_eq!(front.stop_ring(), 2);
        front.request(0, 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!((front.used(), front.status()), (2, 0xee), "a stopped ring is let alone");
        front.set_ring(2);
        front.wait_event(&front.call);
        assert_eq!((front.used(), front.status()), (3, 0));
        assert_eq!(front.acknowledged(18, &ring(0, 0), &[]), 0);
        front.request(0, 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(front.used(), 3, "a disabled one, too");
        assert_eq!(front.acknowledged(18, &ring(0, 1), &[]), 0);
        front.wait_event(&front.call);
        assert_eq!(front.used(), 4);
    });
}

#[test]
fn a_ring_stops_when_its_requests_are_over() {
    run(|socket| {
        let mut front = FrontEnd::up(socket);
        for count in 1..=50_u16 {
            front.request(1, 0);
            std::thread::sleep(std::time::Duration::from_micros(u64::from(count) * 7));
            let base = front.stop_ring();
            assert_eq!(u32::from(front.used()), base, "taken and not given back");
            front.set_ring(base);
            while front.used() != count {
                std::thread::yield_now();
            }
        }
    });
}

#[test]
fn memory_may_change_under_a_running_ring() {
    run(|socket| {
        let mut front = FrontEnd::up(socket);
        works(&mut front);
        let region = words(&[0, MEMORY, MEMORY, USER + MEMORY, 0]);
        let file = [front.file.as_raw_fd()];
        assert_eq!(front.acknowledged(37, &region, &file), 0);
        works(&mut front);
        assert_eq!(front.acknowledged(38, &region, &[]), 0);
        front.set_memory();
        works(&mut front);
        assert_eq!(front.stop_ring(), 6);
    });
}

#[test]
fn the_configuration_space() {
    run(|socket| {
        let front = FrontEnd::connect(socket);
        assert_eq!(front.ask_word(15) & NEEDED, NEEDED);
        assert_eq!(front.ask_word(17), 2);
        let config = |offset: u32, len: u32| {
            let head = [offset, len, 0].map(u32::to_ne_bytes).concat();
            front.ask(24, &[head, vec![0xff; len as usize]].concat())
        };
        let space = config(0, 64);
        assert_eq!(space[12..20], (DISK / 512).to_le_bytes());
        assert_eq!(space[12 + 20..12 + 24], 512_u32.to_le_bytes());
        assert_eq!(space[12 + 60..], [0; 4], "beyond the end");
        assert_eq!(config(32, 1)[12], 1);
        let off = [[32_u32, 1, 0].map(u32::to_ne_bytes).concat(), vec![0]].concat();
        front.send(25, &off, &[]);
        assert_eq!(config(32, 1)[12], 0, "the write cache is off");
    });
}

#[test]
fn a_front_end_is_told_of_another_length() {
    let (to_front, resize) = std::sync::mpsc::channel::<()>();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let front = move |socket: &Path| {
        let front = FrontEnd::negotiated(socket);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(front.acknowledged(21, &[], &[theirs.as_raw_fd()]), 0);
        ready.send(()).unwrap();
        resize.recv().unwrap();
        let mut message = [0; 12];
        std::io::Read::read_exact(&mut &ours, &mut message).unwrap();
        assert_eq!(message[..], [2_u32, 1, 0].map(u32::to_ne_bytes).concat());
        let space =
            front.ask(24, &[[0_u32, 8, 0].map(u32::to_ne_bytes).concat(), vec![0; 8]].concat());
        assert_eq!(space[12..], (2 * DISK / 512).to_le_bytes());
    };
    against_export(
        |_| {},
        front,
        |graph, _| {
            let (graph, executor) = (graph.clone(), graph.executor().clone());
            drop(executor.clone().spawn(async move {
                while is_ready.try_recv().is_err() {
                    executor.sleep(std::time::Duration::from_millis(1)).await;
                }
                graph.node("d0").unwrap().resize(2 * DISK).await.unwrap();
                to_front.send(()).unwrap();
            }));
        },
    );
}

#[test]
fn writes_to_memory_are_logged() {
    run(|socket| {
        let mut front = FrontEnd::up(socket);
        works(&mut front);
        let log = tempfile::tempfile().unwrap();
        log.set_len(64).unwrap();
        let features = front.ask_word(1) & !UNUSED;
        front.send(6, &words(&[64, 0]), &[log.as_raw_fd()]);
        front.receive(6);
        assert_eq!(front.acknowledged(2, &words(&[features]), &[]), 0);
        let logged = || {
            let mut bytes = [0; 64];
            log.read_exact_at(&mut bytes, 0).unwrap();
            let bit = |page: &u64| bytes[(page / 8) as usize] & (1 << (page % 8)) != 0;
            (0..MEMORY / 4096).filter(bit).map(|page| page * 4096).collect::<Vec<_>>()
        };
        front.request(1, 0);
        front.wait_event(&front.call);
        assert_eq!(front.stop_ring(), 3);
        assert_eq!(logged(), [USED, STATUS], "a write to the disk writes to no buffer");
        front.set_ring(3);
        front.request(0, 0);
        front.wait_event(&front.call);
        assert_eq!(front.stop_ring(), 4);
        assert_eq!(logged(), [USED, STATUS, DATA]);
    });
}

/// What a front end does to a connection; a pipe is at hand.
type Misdeed = fn(&FrontEnd, RawFd);

const MISDEEDS: &[(&str, Misdeed)] = &[
    ("garbage", |front, _| front.write(&[0xa5; 4096])),
    ("half a header", |front, _| {
        front.write(&[1, 0, 0]);
        front.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }),
    ("half a payload", |front, _| {
        front.write(&[2_u32, 1, 8, 0].map(u32::to_ne_bytes).concat());
        front.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }),
    ("a huge payload", |front, _| {
        front.write(&[5_u32, 1, u32::MAX].map(u32::to_ne_bytes).concat());
    }),
    ("an unknown message", |front, _| front.send(30, &[], &[])),
    ("features nobody offered", |front, _| front.send(2, &words(&[1 << 63]), &[])),
    ("such protocol features", |front, _| front.send(16, &words(&[1 << 63]), &[])),
    ("memory without a file", |front, _| {
        front.send(5, &words(&[1, 0, MEMORY, USER, 0]), &[]);
    }),
    ("two files for one region", |front, _| {
        let fd = front.file.as_raw_fd();
        front.send(5, &words(&[1, 0, MEMORY, USER, 0]), &[fd, fd]);
    }),
    ("more descriptors than there can be", |front, _| {
        let fd = front.file.as_raw_fd();
        front.send(5, &words(&[1, 0, MEMORY, USER, 0]), &[fd; 9]);
    }),
    ("memory beyond its file", |front, _| {
        let table = words(&[1, 0, 2 * MEMORY, USER, 0]);
        front.send(5, &table, &[front.file.as_raw_fd()]);
    }),
    ("memory that is none", |front, pipe| {
        front.send(5, &words(&[1, 0, MEMORY, USER, 0]), &[pipe]);
    }),
    ("the removal of no region", |front, _| {
        front.send(38, &words(&[0, 0, MEMORY, USER + 1, 0]), &[]);
    }),
    ("a ring that there is not", |front, _| front.send(8, &ring(2, 8), &[])),
    ("a ring of no entries", |front, _| front.send(8, &ring(0, 0), &[])),
    ("a ring of three", |front, _| front.send(8, &ring(0, 3), &[])),
    ("a ring of too many", |front, _| front.send(8, &ring(0, 1 << 16), &[])),
    ("a ring that begins nowhere", |front, _| front.send(10, &ring(0, 1 << 16), &[])),
    ("a descriptor table outside", |front, _| {
        front.send(9, &addresses(0, USER + MEMORY, USER + USED, USER + AVAIL), &[]);
    }),
    ("a used ring at the last bytes", |front, _| {
        front.send(9, &addresses(0, USER + DESC, USER + MEMORY - 4, USER + AVAIL), &[]);
    }),
    ("an available ring that is not aligned", |front, _| {
        front.send(9, &addresses(0, USER + DESC, USER + USED, USER + AVAIL + 1), &[]);
    }),
    ("a kick that is no eventfd", |front, pipe| front.send(12, &words(&[0]), &[pipe])),
    ("a kick that is not there", |front, _| front.send(12, &words(&[0]), &[])),
    ("no kick at all", |front, _| front.send(12, &words(&[1 << 8]), &[])),
    ("a call that is no eventfd", |front, _| {
        front.send(13, &words(&[0]), &[front.file.as_raw_fd()]);
    }),
    ("a channel that is no socket", |front, pipe| front.send(21, &[], &[pipe])),
    ("a log beyond its file", |front, _| {
        front.send(6, &words(&[2 * MEMORY, 0]), &[front.file.as_raw_fd()]);
    }),
    ("a configuration space without end", |front, _| {
        front.write(&[24_u32, 1, 12, 0, u32::MAX, 0].map(u32::to_ne_bytes).concat());
    }),
    ("memory taken away", |front, _| {
        front.file.set_len(0).unwrap();
        front.kick.write(1).unwrap();
    }),
];

/// Each front end does one thing too many; the next one finds the export in order.
#[test]
fn a_front_end_that_makes_no_sense_is_dropped() {
    run(|socket| {
        let (_read, pipe) = std::io::pipe().unwrap();
        for (what, misdeed) in MISDEEDS {
            println!("{what}");
            let mut front = FrontEnd::up(socket);
            works(&mut front);
            misdeed(&front, pipe.as_raw_fd());
            front.expect_hang_up();
        }
        works(&mut FrontEnd::up(socket));
    });
}

/// Numbers that mean something somewhere in the protocol, or nearly.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    8,
    128,
    1 << 8,
    1024,
    4096,
    8 << 32,
    1 << 32,
    MEMORY,
    USER,
    USER + DESC,
    USER + USED,
    USER + AVAIL,
    USER + MEMORY - 8,
    1 << 30,
    1 << 26 | 1 << 28 | 1 << 30,
    u32::MAX as u64,
    u64::MAX,
];

/// Most of what these front ends send is refused at once, so each begins with a ring that runs.
#[test]
fn an_export_survives_whatever_front_ends_send() {
    run(|socket| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = move |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        let (_read, pipe) = std::io::pipe().unwrap();
        for _ in 0..400 {
            let mut front = FrontEnd::up(socket);
            let fds = [front.file.as_raw_fd(), front.kick.as_raw_fd(), pipe.as_raw_fd()];
            for _ in 0..30 {
                let number = |below: &mut dyn FnMut(u64) -> u64| NUMBERS[below(20) as usize];
                let payload: Vec<u64> = (0..below(7)).map(|_| number(&mut below)).collect();
                let fds: Vec<RawFd> = (0..below(3)).map(|_| fds[below(3) as usize]).collect();
                if !front.try_send(below(39) as u32, &words(&payload), &fds) {
                    break;
                }
                let at = [DESC, AVAIL, USED][below(3) as usize] + below(16) * 4;
                let value = number(&mut below) as u32;
                front.memory.write_obj(value, GuestAddress(at)).unwrap();
                front.set_avail(below(9) as u16);
            }
        }
        works(&mut FrontEnd::up(socket));
    });
}

#[test]
fn a_kick_before_anything_else_starts_nothing() {
    run(|socket| {
        let front = FrontEnd::negotiated(socket);
        front.kick.write(1).unwrap();
        let kick = [front.kick.as_raw_fd()];
        assert_eq!(front.acknowledged(12, &words(&[0]), &kick), 0);
        assert_eq!(front.acknowledged(18, &ring(0, 1), &[]), 0);
        assert_eq!(front.stop_ring(), 0);
        front.set_memory();
        front.set_ring(0);
    });
}

#[test]
fn what_a_guest_breaks_stops_its_device_until_the_reset() {
    let breakages: [fn(&mut FrontEnd); 5] = [
        |front| front.set_avail(100),
        |front| front.offer(8),
        |front| {
            // A chain that leads nowhere, in memory that is not there.
            front.descriptor(0, (u64::MAX - 3, 16), 1, 7);
            front.descriptor(7, (MEMORY, 4096), 3, 0);
            front.offer(0);
        },
        |front| {
            front.descriptor(3, (DATA, 16), 1, 3);
            front.offer(3);
        },
        |front| {
            front.descriptor(0, (DATA, u32::MAX), 4, 0);
            front.offer(0);
        },
    ];
    run(move |socket| {
        for breakage in breakages {
            let mut front = FrontEnd::up(socket);
            works(&mut front);
            breakage(&mut front);
            front.wait_event(&front.err);
            // The reset: the ring is stopped, and begins anew.
            front.stop_ring();
            front.memory.write_slice(&[0; 0x3000], GuestAddress(DESC)).unwrap();
            front.set_avail(0);
            front.set_ring(0);
            works(&mut front);
        }
    });
}

#[test]
fn without_protocol_features_rings_are_enabled() {
    run(|socket| {
        let mut front = FrontEnd::connect(socket);
        let features = front.ask_word(1);
        let unused = feature::PROTOCOL_FEATURES | feature::LOG_ALL | UNUSED;
        let features = features & !unused;
        front.send(2, &words(&[features]), &[]);
        front.send(5, &words(&[1, 0, MEMORY, USER, 0]), &[front.file.as_raw_fd()]);
        front.send(8, &ring(0, 8), &[]);
        front.send(9, &addresses(0, USER + DESC, USER + USED, USER + AVAIL), &[]);
        front.send(13, &words(&[0]), &[front.call.as_raw_fd()]);
        front.send(12, &words(&[0]), &[front.kick.as_raw_fd()]);
        works(&mut front);
    });
}
