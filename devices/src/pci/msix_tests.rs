use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Route(u16, Option<MsiMessage>),
    Fire(u16),
}

#[derive(Default)]
struct Sink(Mutex<Vec<Told>>);

impl Sink {
    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MsiSink for Sink {
    fn route(&self, vector: u16, message: Option<MsiMessage>) {
        self.0.lock().unwrap().push(Told::Route(vector, message));
    }

    fn fire(&self, vector: u16) {
        self.0.lock().unwrap().push(Told::Fire(vector));
    }
}

const BAR: usize = 1;
const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;
const LAYOUT: MsixLayout =
    MsixLayout { table_bar: BAR, table_offset: 0x2000, pba_bar: BAR, pba_offset: 0x3000 };
const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_1000, data: 0x4041 };

fn table(vectors: u16) -> (Arc<MsixTable>, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    (MsixTable::new(vectors, LAYOUT, Arc::clone(&sink) as Arc<dyn MsiSink>).unwrap(), sink)
}

/// As Linux writes an entry: four dwords, vector control last.
fn program(table: &MsixTable, vector: u64, message: MsiMessage, masked: bool) {
    let at = TABLE + vector * 16;
    assert!(table.bar_write(BAR, at, &message.address.to_le_bytes()[..4]));
    assert!(table.bar_write(BAR, at + 4, &message.address.to_le_bytes()[4..]));
    assert!(table.bar_write(BAR, at + 8, &message.data.to_le_bytes()));
    assert!(table.bar_write(BAR, at + 12, &u32::from(masked).to_le_bytes()));
}

fn pending(table: &MsixTable, qword: u64) -> u64 {
    let mut data = [0; 8];
    assert!(table.bar_read(BAR, PBA + qword * 8, &mut data));
    u64::from_le_bytes(data)
}

#[test]
fn entries_start_masked_and_read_back() {
    let (table, _) = table(3);
    let mut entry = [0; 16];
    assert!(table.bar_read(BAR, TABLE + 32, &mut entry));
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    program(&table, 2, MsiMessage { address: 0x1_fee0_0003, data: 7 }, false);
    assert!(table.bar_read(BAR, TABLE + 32, &mut entry));
    assert_eq!(entry, [0, 0, 0xe0, 0xfe, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn fires_what_the_guest_programmed() {
    let (table, sink) = table(3);
    table.set_control(CONTROL_ENABLE);
    program(&table, 1, MESSAGE, false);
    assert!(table.fire(1));
    assert_eq!(sink.take(), [Told::Route(1, Some(MESSAGE)), Told::Fire(1)]);
    // Masking and unmasking without a change costs no new route.
    program(&table, 1, MESSAGE, true);
    program(&table, 1, MESSAGE, false);
    assert_eq!(sink.take(), []);
    let elsewhere = MsiMessage { address: 0xfee0_2000, ..MESSAGE };
    program(&table, 1, MESSAGE, true);
    program(&table, 1, elsewhere, false);
    assert_eq!(sink.take(), [Told::Route(1, Some(elsewhere))]);
}

/// Section 6.8.2.9: masked vectors pend, and are sent when the mask goes.
#[test]
fn masked_vectors_pend() {
    let (table, sink) = table(70);
    table.set_control(CONTROL_ENABLE);
    program(&table, 69, MESSAGE, true);
    assert!(table.fire(69));
    assert!(table.fire(69));
    assert_eq!(sink.take(), []);
    assert_eq!([pending(&table, 0), pending(&table, 1)], [0, 1 << 5]);
    program(&table, 69, MESSAGE, false);
    assert_eq!(sink.take(), [Told::Route(69, Some(MESSAGE)), Told::Fire(69)]);
    assert_eq!(pending(&table, 1), 0);
}

#[test]
fn the_function_mask_holds_all_vectors_back() {
    let (table, sink) = table(2);
    program(&table, 0, MESSAGE, false);
    program(&table, 1, MESSAGE, false);
    table.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
    assert!(table.fire(1));
    assert_eq!(sink.take(), []);
    assert_eq!(pending(&table, 0), 2);
    table.set_control(CONTROL_ENABLE);
    let routes = [Told::Route(0, Some(MESSAGE)), Told::Route(1, Some(MESSAGE)), Told::Fire(1)];
    assert_eq!(sink.take(), routes);
}

#[test]
fn a_vector_that_does_not_exist_is_never_sent() {
    let (table, sink) = table(2);
    assert!(!table.fire(2));
    table.set_control(CONTROL_ENABLE);
    assert!(table.fire(2), "it must not fall back to INTx");
    assert!(table.fire(0xffff));
    assert_eq!(sink.take(), []);
}

#[test]
fn other_offsets_and_bars_are_not_its_business() {
    let (table, _) = table(2);
    let mut data = [0xaa; 4];
    for (bar, offset) in
        [(0, TABLE), (BAR, TABLE - 4), (BAR, TABLE + 32), (BAR, PBA + 8), (BAR, u64::MAX)]
    {
        assert!(!table.bar_read(bar, offset, &mut data));
        assert!(!table.bar_write(bar, offset, &data));
    }
    assert_eq!(data, [0xaa; 4]);
    assert!(table.bar_write(BAR, PBA, &[0xff; 8]), "taken, and ignored");
    assert_eq!(pending(&table, 0), 0);
}

#[test]
fn refuses_layouts_that_cannot_be() {
    let sink = || Arc::new(Sink::default());
    let with = |table_offset, pba_offset| MsixLayout { table_offset, pba_offset, ..LAYOUT };
    assert!(MsixTable::new(0, LAYOUT, sink()).is_err());
    assert!(MsixTable::new(MAX_VECTORS + 1, LAYOUT, sink()).is_err());
    assert!(MsixTable::new(2, with(4, 0x100), sink()).is_err());
    assert!(MsixTable::new(2, with(0, 0x18), sink()).is_err());
    assert!(MsixTable::new(2, with(0, 0x20), sink()).is_ok());
    assert!(MsixTable::new(2, with(8, 0), sink()).is_ok());
    assert!(MsixTable::new(65, with(8, 0), sink()).is_err());
    assert!(MsixTable::new(MAX_VECTORS, with(0, 0x8000), sink()).is_ok());
}

#[test]
fn saved_vectors_pend_and_fire_elsewhere() {
    let (source, _) = table(3);
    source.set_control(CONTROL_ENABLE);
    program(&source, 0, MESSAGE, false);
    program(&source, 2, MESSAGE, true);
    source.fire(2);
    let (dest, sink) = table(3);
    dest.restore(&source.save()).unwrap();
    assert_eq!(sink.take(), [], "nothing before the configuration space says enabled");
    dest.set_control(CONTROL_ENABLE);
    assert_eq!(sink.take(), [Told::Route(0, Some(MESSAGE))]);
    assert_eq!(pending(&dest, 0), 4);
    assert_eq!(dest.save(), source.save());
    program(&dest, 2, MESSAGE, false);
    assert_eq!(sink.take(), [Told::Route(2, Some(MESSAGE)), Told::Fire(2)]);
    assert!(table(2).0.restore(&source.save()).is_err(), "another number of vectors");
}

#[test]
fn no_interrupt_is_lost_between_masking_and_firing() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    struct Count(AtomicU64);
    impl MsiSink for Count {
        fn route(&self, _vector: u16, _message: Option<MsiMessage>) {}
        fn fire(&self, _vector: u16) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    let count = Arc::new(Count(AtomicU64::new(0)));
    let table = MsixTable::new(1, LAYOUT, Arc::clone(&count) as Arc<dyn MsiSink>).unwrap();
    table.set_control(CONTROL_ENABLE);
    program(&table, 0, MESSAGE, false);
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                table.bar_write(BAR, TABLE + 12, &[1, 0, 0, 0]);
                table.bar_write(BAR, TABLE + 12, &[0, 0, 0, 0]);
            }
        });
        // One at a time, as a device that waits for its interrupt to be handled.
        for sent in 0..20_000 {
            assert!(table.fire(0));
            while count.0.load(Ordering::SeqCst) == sent {
                std::hint::spin_loop();
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(count.0.load(Ordering::SeqCst), 20_000);
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Fire(u16),
    Control(u16),
}

fn ops() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![TABLE - 8..TABLE + 60, PBA - 8..PBA + 16, any::<u64>()];
    prop_oneof![
        (offset.clone(), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(a, d)| Op::Write(a, d)),
        (offset, 0usize..20).prop_map(|(a, l)| Op::Read(a, l)),
        (0u16..5).prop_map(Op::Fire),
        any::<u16>().prop_map(Op::Control),
    ]
}

proptest! {
    /// Whatever a guest does, an interrupt is sent once or pends, never both and never neither.
    #[test]
    fn every_interrupt_is_sent_or_pends(ops in prop::collection::vec(ops(), 1..80)) {
        let (table, sink) = table(3);
        let mut owed = [false; 3];
        let mut control = 0;
        for op in ops {
            match op {
                Op::Write(offset, data) => drop(table.bar_write(BAR, offset, &data)),
                Op::Read(offset, len) => drop(table.bar_read(BAR, offset, &mut vec![0; len])),
                Op::Fire(vector) => {
                    let enabled = control & CONTROL_ENABLE != 0;
                    prop_assert_eq!(table.fire(vector), enabled);
                    if enabled && let Some(owed) = owed.get_mut(usize::from(vector)) {
                        *owed = true;
                    }
                }
                Op::Control(value) => {
                    control = value;
                    table.set_control(value);
                }
            }
            let mut routed = Vec::new();
            for told in sink.take() {
                match told {
                    Told::Route(vector, message) => routed.push((vector, message)),
                    Told::Fire(vector) => {
                        let owed = &mut owed[usize::from(vector)];
                        prop_assert!(*owed, "sent without a cause, or twice");
                        *owed = false;
                    }
                }
            }
            let bits = pending(&table, 0);
            for (vector, owed) in owed.iter().enumerate() {
                prop_assert_eq!(bits >> vector & 1 == 1, *owed);
            }
            prop_assert_eq!(bits >> 3, 0);
            let saved = table.save();
            for (vector, message) in routed {
                let entry = &saved.vectors[usize::from(vector)];
                let expected = MsiMessage { address: entry.address, data: entry.data };
                prop_assert_eq!(message, Some(expected));
            }
        }
    }
}
