//! Whole devices against an exact model: any framing, any request, any garbage.
#![expect(clippy::cast_possible_truncation, reason = "tests count small things")]

use ferry_block::testing::SimOptions;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::VirtioBlkConfig;
use super::testing::{BUFFERS, QUEUE_SIZE, Rig, Slot, Storage};
use crate::virtio::features::status;
use crate::virtio::testing::{Desc, END, HIGH};

const SECTORS: u64 = 64;
const LEN: usize = SECTORS as usize * 512;
const SERIAL: &str = "serial";

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A request and how it is laid out in descriptors.
#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    /// Bytes after the header.
    payload: Vec<u8>,
    /// Writable bytes before the status.
    room: u32,
    /// Sizes of the buffers that the readable and the writable bytes are cut into.
    cuts: (Vec<u32>, Vec<u32>),
    indirect: bool,
    queue: usize,
}

/// What must come of a request.
#[derive(Debug)]
struct Answer {
    status: u8,
    used_len: u32,
    data: Vec<u8>,
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let sector = prop_oneof![10 => 0..SECTORS + 2, 1 => any::<u64>(), 1 => Just(u64::MAX / 512)];
    let len = prop_oneof![6 => (0..9u32).prop_map(|n| n * 512), 1 => 0..2000u32];
    let transfer = (prop_oneof![Just(IN), Just(OUT)], sector, len, any::<u8>()).prop_map(
        |(kind, sector, len, seed)| {
            let fill = |len: u32| (0..len).map(|n| (n % 253) as u8 ^ seed).collect();
            if kind == IN { (kind, sector, vec![], len) } else { (kind, sector, fill(len), 0) }
        },
    );
    let range = (0..SECTORS + 1, 0..6u32, prop_oneof![6 => 0..2u32, 1 => any::<u32>()]);
    let ranges = (
        prop_oneof![Just(DISCARD), Just(WRITE_ZEROES)],
        prop::collection::vec(range, 0..4),
        prop_oneof![9 => Just(0usize), 1 => 1..16usize],
    )
        .prop_map(|(kind, list, odd)| {
            let mut payload = Vec::new();
            for (sector, count, flags) in list {
                payload.extend(sector.to_le_bytes());
                payload.extend(count.to_le_bytes());
                payload.extend(flags.to_le_bytes());
            }
            payload.resize(payload.len() + odd, 0);
            (kind, 0, payload, 0)
        });
    let other = (
        prop_oneof![Just(FLUSH), Just(GET_ID), Just(2u32), Just(14), Just(16), any::<u32>()],
        any::<u64>(),
        0..40u32,
    )
        .prop_filter("kinds with rules of their own", |(kind, ..)| {
            ![IN, OUT, DISCARD, WRITE_ZEROES].contains(kind)
        })
        .prop_map(|(kind, sector, room)| (kind, sector, vec![], room));
    let cuts = || prop::collection::vec(prop_oneof![1..40u32, 100..5000u32], 0..6);
    (prop_oneof![5 => transfer, 2 => ranges, 1 => other], cuts(), cuts(), any::<bool>(), 0..2usize)
        .prop_map(|((kind, sector, payload, room), readable, writable, indirect, queue)| Ask {
            kind,
            sector,
            payload,
            room,
            cuts: (readable, writable),
            indirect,
            queue,
        })
}

/// The disk as the specification has it. Discarded bytes may read as before or as zero.
struct Model {
    bytes: Vec<u8>,
    read_only: bool,
}

impl Model {
    fn span(&self, sector: u64, len: u64) -> Option<std::ops::Range<usize>> {
        let (from, to) = (u128::from(sector) * 512, u128::from(sector) * 512 + u128::from(len));
        let whole = len.is_multiple_of(512) && to <= LEN as u128;
        whole.then_some(from as usize..to as usize)
    }

    /// The byte ranges a request touches, if it is allowed.
    fn spans(&self, ask: &Ask) -> Result<Vec<std::ops::Range<usize>>, u8> {
        match ask.kind {
            IN => Ok(vec![self.span(ask.sector, u64::from(ask.room)).ok_or(1)?]),
            OUT if self.read_only => Err(1),
            // Commands that a read-only disk does not even offer.
            _ if self.read_only => Err(2),
            OUT => Ok(vec![self.span(ask.sector, ask.payload.len() as u64).ok_or(1)?]),
            _ => {
                let list = ask.payload.chunks_exact(16);
                if !list.remainder().is_empty() || list.len() == 0 {
                    return Err(1);
                }
                list.map(|segment| {
                    let field =
                        |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap());
                    let allowed = if ask.kind == WRITE_ZEROES { 1 } else { 0 };
                    if field(12) & !allowed != 0 {
                        return Err(2);
                    }
                    let sector = u64::from_le_bytes(segment[..8].try_into().unwrap());
                    self.span(sector, u64::from(field(8)) * 512).ok_or(1)
                })
                .collect()
            }
        }
    }

    fn answer(&mut self, ask: &Ask) -> Answer {
        let written = |status: u8, data: Vec<u8>| {
            let whole = data.len() == ask.room as usize;
            Answer { status, used_len: data.len() as u32 + u32::from(whole), data }
        };
        match ask.kind {
            FLUSH => written(0, vec![]),
            GET_ID => {
                let mut id = SERIAL.as_bytes().to_vec();
                id.resize(20, 0);
                id.truncate(ask.room as usize);
                written(0, id)
            }
            IN | OUT | DISCARD | WRITE_ZEROES => match self.spans(ask) {
                Err(status) => written(status, vec![]),
                Ok(spans) => {
                    let first = spans.first().cloned().unwrap_or(0..0);
                    match ask.kind {
                        IN => return written(0, self.bytes[first].to_vec()),
                        OUT => self.bytes[first].copy_from_slice(&ask.payload),
                        WRITE_ZEROES => spans.into_iter().for_each(|span| self.bytes[span].fill(0)),
                        _ => {}
                    }
                    written(0, vec![])
                }
            },
            _ => written(2, vec![]),
        }
    }

    /// Whether two requests may run at the same time with one outcome only.
    fn independent(&self, a: &Ask, b: &Ask) -> bool {
        let spans = |ask: &Ask| match ask.kind {
            IN | OUT | DISCARD | WRITE_ZEROES => self.spans(ask).unwrap_or_default(),
            _ => vec![],
        };
        let (left, right) = (spans(a), spans(b));
        let meet = |x: &std::ops::Range<usize>, y: &std::ops::Range<usize>| {
            x.start < y.end && y.start < x.end
        };
        (a.kind == IN && b.kind == IN) || !left.iter().any(|x| right.iter().any(|y| meet(x, y)))
    }
}

fn cut(base: u64, len: u32, cuts: &[u32], desc: fn(u64, u32) -> Desc) -> Vec<Desc> {
    let (mut descs, mut done) = (Vec::new(), 0);
    for size in cuts.iter().copied().chain([u32::MAX]) {
        let size = size.min(len - done);
        if size > 0 {
            descs.push(desc(base + u64::from(done), size));
        }
        done += size;
    }
    descs
}

/// Puts a request into memory and offers it. Readable bytes lie at `data`, writable ones behind them, and
/// the status byte follows the writable ones, so that one buffer may hold both.
fn offer(rig: &mut Rig, slot: u64, ask: &Ask) -> u16 {
    let at = Slot::new(2 * slot);
    let mut bytes = ask.kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(ask.sector.to_le_bytes());
    bytes.extend(&ask.payload);
    rig.memory.write_slice(&bytes, GuestAddress(at.data)).unwrap();
    let room = vec![0xee; ask.room as usize + 1];
    rig.memory.write_slice(&room, GuestAddress(at.data + 0x1800)).unwrap();
    let mut descs = cut(at.data, bytes.len() as u32, &ask.cuts.0, Desc::readable);
    descs.extend(cut(at.data + 0x1800, ask.room + 1, &ask.cuts.1, Desc::writable));
    let driver = &mut rig.drivers[ask.queue];
    let head = if ask.indirect { driver.indirect(at.table, &descs) } else { driver.chain(&descs) };
    driver.offer(head);
    head
}

fn check(rig: &mut Rig, rounds: &[Vec<Ask>], read_only: bool) -> Result<(), TestCaseError> {
    let mut model = Model { bytes: (0..LEN).map(|n| (n % 249) as u8).collect(), read_only };
    rig.storage.disk.fill(0, &model.bytes);
    for round in rounds {
        // Only requests whose order does not matter run together.
        let mut together: Vec<&Ask> = Vec::new();
        for ask in round {
            if together.iter().all(|other| model.independent(ask, other)) {
                together.push(ask);
            }
        }
        let mut expected = Vec::new();
        for (slot, ask) in (0..).zip(&together) {
            let head = offer(rig, slot, ask);
            expected.push((ask.queue, head, model.answer(ask)));
        }
        rig.finish();
        for (slot, (queue, head, answer)) in (0..).zip(&expected) {
            let at = Slot::new(2 * slot).data + 0x1800;
            let room = together[slot as usize].room as usize;
            let mut got = vec![0; room + 1];
            rig.memory.read_slice(&mut got, GuestAddress(at)).unwrap();
            prop_assert_eq!(
                got[room],
                answer.status,
                "{} {} {:?}",
                queue,
                head,
                together[slot as usize]
            );
            prop_assert_eq!(&got[..answer.data.len()], &answer.data[..]);
        }
        for queue in 0..rig.drivers.len() {
            let mut used: Vec<_> = std::iter::from_fn(|| rig.drivers[queue].take_used()).collect();
            let of_queue = expected.iter().filter(|(q, ..)| *q == queue);
            let mut wanted: Vec<_> = of_queue.map(|(_, head, a)| (*head, a.used_len)).collect();
            used.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(used, wanted, "each request is answered once");
        }
        let contents = rig.storage.disk.contents();
        let discarded = together.iter().filter(|ask| ask.kind == DISCARD);
        let spans = discarded.flat_map(|ask| model.spans(ask).unwrap_or_default());
        for span in spans.collect::<Vec<_>>() {
            for at in span {
                prop_assert!(contents[at] == model.bytes[at] || contents[at] == 0);
                model.bytes[at] = contents[at];
            }
        }
        prop_assert!(contents == model.bytes, "the disk has other bytes than it should");
        prop_assert_eq!(rig.status(), 15);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn requests_in_any_framing_do_exactly_what_the_model_does(
        rounds in prop::collection::vec(prop::collection::vec(any_ask(), 1..5), 1..12),
        seed in any::<u64>(),
        read_only in prop::bool::weighted(0.1),
        event_idx in any::<bool>(),
    ) {
        let storage = Storage::new(SimOptions::new(LEN as u64, seed));
        let config =
            VirtioBlkConfig { queues: 2, serial: SERIAL.into(), read_only, ..Default::default() };
        let mut rig = Rig::over(&storage, crate::virtio::testing::memory(), config, event_idx);
        rig.start(0);
        check(&mut rig, &rounds, read_only)?;
    }
}

/// Something that a hostile or broken driver does.
#[derive(Clone, Debug)]
enum Evil {
    /// Writes bytes somewhere among rings, tables and buffers.
    Scribble { place: u8, at: u64, bytes: Vec<u8> },
    /// Offers a head of a queue, whatever is there.
    Offer { queue: usize, head: u16 },
    /// A proper request.
    Ask(Ask),
    /// Moves the index of the available ring.
    Index { queue: usize, index: u16 },
    /// A descriptor that could nearly be one.
    Desc { queue: usize, index: u16, desc: (u64, u32, u16, u16) },
    /// Lets the device work.
    Run,
    /// Quiesces and resumes.
    Pause,
    /// Resets and starts again.
    Reset,
}

fn evil() -> impl Strategy<Value = Evil> {
    let bytes = prop::collection::vec(any::<u8>(), 1..40);
    let addr = prop_oneof![
        4 => (0..16u64).prop_map(|slot| Slot::new(slot).data),
        1 => any::<u64>(),
        1 => (END - 600)..(END + 10),
        1 => Just(0x1000u64),
    ];
    let len = prop_oneof![4 => 0..600u32, 1 => any::<u32>()];
    let desc = (addr, len, 0..8u16, 0..QUEUE_SIZE + 2);
    prop_oneof![
        2 => (0..4u8, 0..0x2000u64, bytes)
            .prop_map(|(place, at, bytes)| Evil::Scribble { place, at, bytes }),
        4 => (0..2usize, 0..QUEUE_SIZE + 1).prop_map(|(queue, head)| Evil::Offer { queue, head }),
        4 => any_ask().prop_map(Evil::Ask),
        1 => (0..2usize, any::<u16>()).prop_map(|(queue, index)| Evil::Index { queue, index }),
        6 => (0..2usize, 0..QUEUE_SIZE, desc)
            .prop_map(|(queue, index, desc)| Evil::Desc { queue, index, desc }),
        6 => Just(Evil::Run),
        1 => Just(Evil::Pause),
        1 => Just(Evil::Reset),
    ]
}

fn clear_rings(rig: &mut Rig) {
    let memory = rig.memory.clone();
    for driver in &mut rig.drivers {
        memory.write_slice(&[0; 0x1000], GuestAddress(driver.desc)).unwrap();
        *driver = crate::virtio::testing::Driver::new(&memory, driver.desc, QUEUE_SIZE, true);
    }
}

fn be_evil(rig: &mut Rig, step: usize, evil: &Evil) {
    match evil {
        Evil::Scribble { place, at, bytes } => {
            let base = [0x1000, Slot::new(0).table, BUFFERS, HIGH][usize::from(*place)];
            rig.memory.write_slice(bytes, GuestAddress(base + at)).unwrap();
        }
        Evil::Offer { queue, head } => rig.drivers[*queue].offer(*head),
        Evil::Ask(ask) => {
            offer(rig, step as u64 % 8, ask);
        }
        Evil::Index { queue, index } => rig.drivers[*queue].set_avail_index(*index),
        Evil::Desc { queue, index, desc: (addr, len, flags, next) } => {
            let desc = Desc { addr: *addr, len: *len, flags: *flags, next: *next };
            rig.drivers[*queue].put(rig.drivers[*queue].desc, *index, desc);
        }
        Evil::Run => rig.settle(),
        Evil::Pause => {
            rig.wait(crate::virtio::transport::VirtioPci::quiesce(&rig.device));
            rig.device.lock().unwrap().resume();
        }
        Evil::Reset => {
            rig.finish();
            clear_rings(rig);
            rig.start(0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn a_hostile_driver_breaks_nothing_but_its_own_device(
        steps in prop::collection::vec(evil(), 1..80),
        seed in any::<u64>(),
    ) {
        let storage = Storage::new(SimOptions::new(LEN as u64, seed));
        let config = VirtioBlkConfig { queues: 2, serial: SERIAL.into(), ..Default::default() };
        let mut rig = Rig::new(&storage, config);
        rig.start(0);
        for (step, evil) in steps.iter().enumerate() {
            be_evil(&mut rig, step, evil);
            prop_assert!(matches!(rig.status() & !status::NEEDS_RESET, 15));
        }
        // Whatever was done: everything in flight ends, and a reset makes the device as new.
        rig.finish();
        prop_assert_eq!(storage.disk.under_way(), 0);
        clear_rings(&mut rig);
        rig.start(0);
        let ask = Ask {
            kind: OUT,
            sector: 1,
            payload: vec![7; 512],
            room: 0,
            cuts: (vec![], vec![]),
            indirect: false,
            queue: 1,
        };
        let head = offer(&mut rig, 0, &ask);
        rig.finish();
        prop_assert_eq!(rig.drivers[1].take_used(), Some((head, 1)));
        prop_assert_eq!(storage.disk.contents()[512..1024].to_vec(), vec![7; 512]);
    }
}
