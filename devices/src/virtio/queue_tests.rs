use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{Desc, Driver, END, HIGH, INDIRECT, NEXT, WRITE, memory};

const BASE: u64 = 0x1000;
const TABLE: u64 = 0x8000;

fn ring(driver: &Driver) -> Ring {
    Ring::new(driver.state(), true, &driver.memory).unwrap()
}

/// Everything that is available, as (head, readable, writable) or the error that ended it.
type Taken = Vec<Result<(u16, Vec<(u64, u32)>, Vec<(u64, u32)>), QueueError>>;

fn take_all(ring: &mut Ring, memory: &GuestMemory) -> Taken {
    let mut taken = Vec::new();
    let mut chain = Chain::new();
    let mut batch = match ring.batch(memory) {
        Ok(batch) => batch,
        Err(error) => return vec![Err(error)],
    };
    loop {
        let flat = |list: &[Segment]| list.iter().map(|s| (s.addr.0, s.len)).collect::<Vec<_>>();
        match batch.next(&mut chain) {
            Ok(false) => return taken,
            Ok(true) => {
                assert_eq!(chain.readable_len(), sum(chain.readable()));
                assert_eq!(chain.writable_len(), sum(chain.writable()));
                taken.push(Ok((chain.head(), flat(chain.readable()), flat(chain.writable()))));
            }
            Err(error) => {
                taken.push(Err(error));
                return taken;
            }
        }
    }
}

fn sum(list: &[Segment]) -> u64 {
    list.iter().map(|segment| u64::from(segment.len)).sum()
}

#[test]
fn takes_chains_in_order_and_gives_them_back() {
    let memory = memory();
    let mut driver = Driver::new(&memory, BASE, 8, false);
    let first = driver.chain(&[Desc::readable(0x100, 16), Desc::writable(0x200, 7)]);
    let second = driver.indirect(TABLE, &[Desc::readable(0x300, 1), Desc::writable(0x400, 2)]);
    driver.offer(first);
    driver.offer(second);
    let mut ring = ring(&driver);
    assert!(ring.has_available(&memory));
    let taken = take_all(&mut ring, &memory);
    assert_eq!(
        taken,
        [
            Ok((first, vec![(0x100, 16)], vec![(0x200, 7)])),
            Ok((second, vec![(0x300, 1)], vec![(0x400, 2)])),
        ]
    );
    assert!(!ring.has_available(&memory));
    assert_eq!(ring.in_flight(), 2);
    let done = [Used { head: second, len: 2 }, Used { head: first, len: 7 }];
    assert!(ring.push_used(&memory, &done).unwrap());
    assert_eq!(driver.take_used(), Some((second, 2)));
    assert_eq!(driver.take_used(), Some((first, 7)));
    assert_eq!(driver.take_used(), None);
    assert_eq!(ring.in_flight(), 0);
    let state = ring.state();
    assert_eq!((state.next_avail, state.next_used), (2, 2));
}

#[test]
fn goes_on_at_saved_positions_across_the_wrap() {
    let memory = memory();
    let mut driver = Driver::new(&memory, BASE, 4, true);
    let mut ring = ring(&driver);
    for round in 0..70_000u32 {
        let head = driver.chain(&[Desc::writable(0x100, 1)]);
        driver.offer(head);
        if round % 1000 == 0 {
            let state = ring.state();
            ring = Ring::new(state, true, &memory).unwrap();
        }
        assert_eq!(take_all(&mut ring, &memory), [Ok((head, vec![], vec![(0x100, 1)]))]);
        ring.push_used(&memory, &[Used { head, len: round }]).unwrap();
        assert_eq!(driver.take_used(), Some((head, round)));
    }
}

#[test]
fn refuses_rings_outside_of_memory() {
    let memory = memory();
    let driver = Driver::new(&memory, BASE, 8, false);
    for (field, value) in [
        (0, END),
        (0, 0),
        (0, 0x1008),
        (1, END - 2),
        (1, 0x1001),
        (2, END - 4),
        (2, 0x1002),
        (2, u64::MAX - 3),
    ] {
        let mut state = driver.state();
        [&mut state.desc_table, &mut state.avail_ring, &mut state.used_ring][field]
            .clone_from(&value);
        let error = Ring::new(state, true, &memory).map(|_ring| ()).unwrap_err();
        assert_eq!(error, QueueError::RingOutOfMemory, "{field} {value:#x}");
    }
    for size in [0, 3, 2048] {
        let state = QueueState { size, ..driver.state() };
        assert!(Ring::new(state, true, &memory).is_err(), "{size}");
    }
}

#[test]
fn an_index_more_than_a_queue_ahead_breaks_the_queue() {
    let memory = memory();
    let driver = Driver::new(&memory, BASE, 8, false);
    let mut ring = ring(&driver);
    driver.set_avail_index(9);
    assert_eq!(take_all(&mut ring, &memory), [Err(QueueError::AvailIndex { avail: 9, next: 0 })]);
    driver.set_avail_index(u16::MAX);
    assert!(ring.batch(&memory).is_err());
}

#[test]
fn a_head_may_not_be_offered_twice_before_it_is_used() {
    let memory = memory();
    let mut driver = Driver::new(&memory, BASE, 8, false);
    let head = driver.chain(&[Desc::writable(0x100, 1)]);
    driver.offer(head);
    driver.offer(head);
    let mut ring = ring(&driver);
    let taken = take_all(&mut ring, &memory);
    assert_eq!(taken[1..], [Err(QueueError::HeadInFlight(head))]);
    // The first one is still served.
    assert_eq!(ring.in_flight(), 1);
    ring.push_used(&memory, &[Used { head, len: 1 }]).unwrap();
    driver.offer(head);
    assert_eq!(take_all(&mut ring, &memory).len(), 1);
}

#[test]
fn malformed_chains_have_each_their_error() {
    let (addr, len) = (0x100, 1);
    let link = |flags, next| Desc { addr, len, flags: flags | NEXT, next };
    let last = |flags| Desc { addr, len, flags, next: 0 };
    let table = |addr, len, flags| Desc { addr, len, flags: INDIRECT | flags, next: 0 };
    // Descriptors 0.. of the table, then of the indirect table.
    let cases: Vec<(Vec<Desc>, Vec<Desc>, QueueError)> = vec![
        (vec![link(0, 0)], vec![], QueueError::ChainTooLong(0)),
        (vec![link(0, 1), link(0, 0)], vec![], QueueError::ChainTooLong(0)),
        (vec![link(0, 8)], vec![], QueueError::DescriptorIndex { index: 8, size: 8 }),
        (vec![link(WRITE, 1), last(0)], vec![], QueueError::ReadableAfterWritable(0)),
        (
            vec![Desc { len: u32::MAX, ..link(0, 1) }, Desc { len: 2, ..last(0) }],
            vec![],
            QueueError::BytesTooMany(0),
        ),
        (vec![table(TABLE, 0, 0)], vec![last(0)], QueueError::Indirect(0)),
        (vec![table(TABLE, 24, 0)], vec![last(0)], QueueError::Indirect(0)),
        (vec![table(END, 16, 0)], vec![], QueueError::Indirect(0)),
        (vec![table(TABLE, 16, NEXT)], vec![last(0)], QueueError::Indirect(0)),
        (vec![table(TABLE, 16, 0)], vec![table(TABLE, 16, 0)], QueueError::Indirect(0)),
        (
            vec![table(TABLE, 16, 0)],
            vec![link(0, 1)],
            QueueError::DescriptorIndex { index: 1, size: 1 },
        ),
        (vec![table(TABLE, 32, 0)], vec![link(0, 1), link(0, 0)], QueueError::ChainTooLong(0)),
    ];
    for (direct, indirect, error) in cases {
        let memory = memory();
        let mut driver = Driver::new(&memory, BASE, 8, false);
        for (index, desc) in (0..).zip(&direct) {
            driver.put(driver.desc, index, *desc);
        }
        for (index, desc) in (0..).zip(&indirect) {
            driver.put(TABLE, index, *desc);
        }
        driver.offer(0);
        let mut ring = ring(&driver);
        assert_eq!(take_all(&mut ring, &memory), [Err(error)], "{direct:?} {indirect:?}");
        assert_eq!(ring.in_flight(), 0);
    }
}

#[test]
fn a_head_outside_of_the_table_and_tables_that_were_not_negotiated() {
    let memory = memory();
    let mut driver = Driver::new(&memory, BASE, 8, false);
    driver.offer(8);
    let mut ring = ring(&driver);
    let error = QueueError::DescriptorIndex { index: 8, size: 8 };
    assert_eq!(take_all(&mut ring, &memory), [Err(error)]);

    let mut driver = Driver::new(&memory, 0x4000, 8, false);
    let head = driver.indirect(TABLE, &[Desc::writable(0x100, 1)]);
    driver.offer(head);
    let mut ring = Ring::new(driver.state(), false, &memory).unwrap();
    assert_eq!(take_all(&mut ring, &memory), [Err(QueueError::Indirect(head))]);
}

#[test]
fn the_longest_indirect_chain_is_taken_and_one_more_is_not() {
    for (len, good) in [(MAX_CHAIN_LEN, true), (MAX_CHAIN_LEN + 1, false)] {
        let memory = memory();
        let mut driver = Driver::new(&memory, BASE, 8, false);
        let head = driver.indirect(HIGH, &vec![Desc::writable(0x100, 1); len]);
        driver.offer(head);
        let taken = take_all(&mut ring(&driver), &memory);
        if good {
            assert_eq!(taken[0].as_ref().unwrap().2.len(), len);
        } else {
            assert_eq!(taken, [Err(QueueError::ChainTooLong(head))]);
        }
    }
}

#[test]
fn interrupts_only_when_the_driver_wants_them() {
    let memory = memory();
    let mut driver = Driver::new(&memory, BASE, 8, true);
    let mut ring = ring(&driver);
    let mut use_some = |ring: &mut Ring, count: usize| {
        let mut done = Vec::new();
        for _ in 0..count {
            let head = driver.chain(&[Desc::writable(0x100, 1)]);
            driver.offer(head);
            done.push(Used { head, len: 1 });
        }
        take_all(ring, &memory);
        ring.push_used(&memory, &done).unwrap()
    };
    let event = Driver::new(&memory, BASE, 8, true);
    event.set_used_event(0);
    assert!(use_some(&mut ring, 1), "passes 0");
    event.set_used_event(3);
    assert!(!use_some(&mut ring, 2), "at 3, not past it");
    assert!(use_some(&mut ring, 4), "passes 3 in a batch");
    assert!(!use_some(&mut ring, 1), "is past it already");

    let mut driver = Driver::new(&memory, 0x4000, 8, false);
    let mut ring = Ring::new(driver.state(), true, &memory).unwrap();
    for (flags, wanted) in [(0, true), (NO_INTERRUPT, false)] {
        driver.set_avail_flags(flags);
        let head = driver.chain(&[Desc::writable(0x100, 1)]);
        driver.offer(head);
        take_all(&mut ring, &memory);
        assert_eq!(ring.push_used(&memory, &[Used { head, len: 1 }]).unwrap(), wanted);
    }
}

#[test]
fn doorbells_are_asked_for_and_not() {
    for event_idx in [false, true] {
        let memory = memory();
        let mut driver = Driver::new(&memory, BASE, 8, event_idx);
        let mut ring = ring(&driver);
        ring.disable_kicks(&memory).unwrap();
        // With the event index one doorbell is left over from the start.
        let head = driver.chain(&[Desc::writable(0x100, 1)]);
        driver.offer(head);
        assert!(ring.enable_kicks(&memory).unwrap(), "one came in");
        take_all(&mut ring, &memory);
        assert!(!ring.enable_kicks(&memory).unwrap());
        let head = driver.chain(&[Desc::writable(0x100, 1)]);
        driver.offer(head);
        assert!(driver.must_kick(1));
        ring.disable_kicks(&memory).unwrap();
        take_all(&mut ring, &memory);
        let head = driver.chain(&[Desc::writable(0x100, 1)]);
        driver.offer(head);
        assert!(!driver.must_kick(1));
    }
}

#[test]
fn parked_heads_are_adopted_and_read_again() {
    let memory = memory();
    let mut driver = Driver::new(&memory, BASE, 8, false);
    let head = driver.chain(&[Desc::writable(0x100, 1)]);
    let mut ring = ring(&driver);
    assert_eq!(ring.adopt(head), Ok(()));
    assert_eq!(ring.adopt(head), Err(QueueError::HeadInFlight(head)));
    assert_eq!(ring.adopt(8), Err(QueueError::DescriptorIndex { index: 8, size: 8 }));
    let mut chain = Chain::new();
    ring.read_again(head, &memory, &mut chain).unwrap();
    assert_eq!((chain.head(), chain.writable_len()), (head, 1));
}

/// Descriptors followed so far, and how many of them since the indirect table was entered.
#[derive(Default)]
struct Path {
    descs: Vec<Desc>,
    marker: usize,
}

impl Path {
    fn push(&mut self, desc: Desc) {
        self.descs.push(desc);
    }
    fn clear_marker(&mut self) {
        self.marker = self.descs.len();
    }
    fn since_marker(&self) -> usize {
        self.descs.len() - self.marker
    }
}

/// Address and length of each buffer: the readable ones and the writable ones.
type Buffers = (Vec<(u64, u32)>, Vec<(u64, u32)>);

/// What the specification says of a chain, written down as simply as possible: all descriptors in the order
/// in which they are followed, or nothing.
fn model(table: &[Desc], inner: &[Desc], head: u16) -> Option<Buffers> {
    let mut path = Path::default();
    let (mut list, mut at, mut nested) = (table, usize::from(head), false);
    loop {
        let desc = list.get(at)?;
        if desc.flags & INDIRECT != 0 {
            let here = desc.addr == TABLE && desc.len as usize / 16 <= inner.len();
            if nested || desc.flags & NEXT != 0 || desc.len == 0 || desc.len % 16 != 0 || !here {
                return None;
            }
            (list, at, nested) = (&inner[..desc.len as usize / 16], 0, true);
            path.clear_marker();
            continue;
        }
        path.push(*desc);
        if path.since_marker() > list.len() {
            return None;
        }
        if desc.flags & NEXT == 0 {
            break;
        }
        at = usize::from(desc.next);
    }
    let path = path.descs;
    let total: u64 = path.iter().map(|desc| u64::from(desc.len)).sum();
    let used: Vec<_> = path.iter().filter(|desc| desc.len > 0).collect();
    let sorted = used.is_sorted_by_key(|desc| desc.flags & WRITE);
    if total > 1 << 32 || !sorted {
        return None;
    }
    let part = |flag| {
        let of = used.iter().filter(move |desc| desc.flags & WRITE == flag);
        of.map(|desc| (desc.addr, desc.len)).collect::<Vec<_>>()
    };
    Some((part(0), part(WRITE)))
}

fn any_desc(tables: bool) -> impl Strategy<Value = Desc> {
    let flags = prop_oneof![
        8 => prop_oneof![Just(0), Just(NEXT), Just(NEXT | WRITE), Just(WRITE)],
        u32::from(tables) => prop_oneof![Just(INDIRECT), Just(INDIRECT | WRITE), Just(INDIRECT | NEXT)],
    ];
    let len = prop_oneof![8 => 1..5000u32, 1 => Just(0), 1 => any::<u32>()];
    (flags, len, 0..9u16, any::<u64>()).prop_map(|(flags, len, next, addr)| {
        let table = flags & INDIRECT != 0;
        let len = if table && len < 4000 { 16 * (len % 10) } else { len };
        Desc { addr: if table { TABLE } else { addr }, len, flags, next }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn chains_are_read_as_the_model_reads_them(
        table in prop::collection::vec(any_desc(true), 8),
        inner in prop::collection::vec(any_desc(false), 8),
        heads in prop::collection::vec(0..9u16, 1..8),
    ) {
        let memory = memory();
        let mut driver = Driver::new(&memory, BASE, 8, false);
        for (index, desc) in (0..).zip(&table) {
            driver.put(driver.desc, index, *desc);
        }
        // Beyond the table memory is zero: a descriptor of no length that ends a chain.
        let zeroes = Desc::readable(0, 0);
        let mut inner = inner;
        for (index, desc) in (0..).zip(&inner) {
            driver.put(TABLE, index, *desc);
        }
        inner.resize(4096, zeroes);
        let mut expected = Vec::new();
        for (n, head) in heads.iter().enumerate() {
            driver.offer(*head);
            if expected.last().is_some_and(Option::is_none) {
                continue;
            }
            let fresh = !heads[..n].contains(head);
            expected.push(model(&table, &inner, *head).filter(|_| fresh).map(|(r, w)| (*head, r, w)));
        }
        let mut ring = ring(&driver);
        let taken: Vec<_> = take_all(&mut ring, &memory).into_iter().map(Result::ok).collect();
        let good = expected.iter().flatten().count();
        prop_assert_eq!(taken, expected);
        prop_assert_eq!(ring.in_flight(), good);
    }
}
