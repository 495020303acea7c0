use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The same by sets of granule numbers: slow and plainly right.
#[derive(Clone)]
struct Model {
    len: u64,
    granularity: u64,
    dirty: BTreeSet<u64>,
}

impl Model {
    fn granules(&self) -> u64 {
        self.len.div_ceil(self.granularity)
    }

    fn bytes_of(&self, granule: u64) -> Range<u64> {
        granule * self.granularity..((granule + 1) * self.granularity).min(self.len)
    }

    fn mark(&mut self, range: &Range<u64>) {
        for granule in 0..self.granules() {
            let bytes = self.bytes_of(granule);
            if range.start.max(bytes.start) < range.end.min(bytes.end) {
                self.dirty.insert(granule);
            }
        }
    }

    fn clear(&mut self, range: &Range<u64>) {
        for granule in 0..self.granules() {
            let bytes = self.bytes_of(granule);
            if range.start <= bytes.start && bytes.end <= range.end {
                self.dirty.remove(&granule);
            }
        }
    }

    fn next_dirty(&self, from: u64, limit: u64) -> Option<Range<u64>> {
        if from >= self.len {
            return None;
        }
        let first = *self.dirty.range(from / self.granularity..).next()?;
        let most = (limit / self.granularity).max(1);
        let mut end = first;
        while self.dirty.contains(&end) && end - first < most {
            end += 1;
        }
        Some(first * self.granularity..(end * self.granularity).min(self.len))
    }

    fn dirty_bytes(&self) -> u64 {
        self.dirty.iter().map(|granule| self.bytes_of(*granule)).map(|b| b.end - b.start).sum()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Mark(Range<u64>),
    Clear(Range<u64>),
    Next { from: u64, limit: u64 },
    Freeze,
    Release,
    MergeBack,
    Resize(u64),
    RoundTrip,
}

fn range(len: u64) -> impl Strategy<Value = Range<u64>> {
    (0..len + 4096, prop_oneof![0..2048_u64, 0..len + 4096]).prop_map(|(at, n)| at..at + n)
}

fn step(len: u64) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => range(len).prop_map(Step::Mark),
        4 => range(len).prop_map(Step::Clear),
        6 => (0..len + 4096, prop_oneof![Just(0), 0..len * 2, Just(u64::MAX)])
            .prop_map(|(from, limit)| Step::Next { from, limit }),
        1 => Just(Step::Freeze),
        1 => Just(Step::Release),
        1 => Just(Step::MergeBack),
        1 => (0..len * 2).prop_map(Step::Resize),
        1 => Just(Step::RoundTrip),
    ]
}

fn case() -> impl Strategy<Value = (u64, u64, Vec<Step>)> {
    (1..400_000_u64, 9..14_u32).prop_flat_map(|(len, shift)| {
        (Just(len), Just(1 << shift), prop::collection::vec(step(len), 1..40))
    })
}

proptest! {
    #[test]
    fn behaves_like_a_set_of_granules((len, granularity, steps) in case()) {
        let mut bitmap = DirtyBitmap::new(len, granularity).unwrap();
        let mut model = Model { len, granularity, dirty: BTreeSet::new() };
        let mut frozen: Option<(FrozenView, Model)> = None;
        for step in steps {
            match step {
                Step::Mark(range) => {
                    bitmap.mark(range.clone());
                    model.mark(&range);
                }
                Step::Clear(range) => {
                    bitmap.clear(range.clone());
                    model.clear(&range);
                }
                Step::Next { from, limit } => {
                    prop_assert_eq!(bitmap.next_dirty(from, limit), model.next_dirty(from, limit));
                }
                Step::Freeze if frozen.is_none() => {
                    let view = bitmap.freeze().unwrap();
                    prop_assert_eq!(view.bits().dirty_bytes(), model.dirty_bytes());
                    frozen = Some((view, model.clone()));
                    model.dirty.clear();
                }
                Step::Release => {
                    if let Some((view, _)) = frozen.take() {
                        bitmap.release(view);
                    }
                }
                Step::MergeBack => {
                    if let Some((view, old)) = frozen.take() {
                        bitmap.merge_back(view).unwrap();
                        model.dirty.extend(old.dirty);
                    }
                }
                Step::Resize(len) if frozen.is_none() => {
                    bitmap.resize(len).unwrap();
                    let old = model.clone();
                    model = Model { len, granularity, dirty: BTreeSet::new() };
                    for granule in &old.dirty {
                        model.mark(&old.bytes_of(*granule));
                    }
                }
                Step::RoundTrip => {
                    let mut copy = DirtyBitmap::new(model.len, granularity).unwrap();
                    copy.load_le_bytes(&bitmap.to_le_bytes()).unwrap();
                    prop_assert_eq!(copy.next_dirty(0, u64::MAX), bitmap.next_dirty(0, u64::MAX));
                    prop_assert_eq!(copy.dirty_bytes(), bitmap.dirty_bytes());
                }
                Step::Freeze | Step::Resize(_) => {}
            }
            prop_assert_eq!(bitmap.dirty_granules(), model.dirty.len() as u64);
            prop_assert_eq!(bitmap.dirty_bytes(), model.dirty_bytes());
            prop_assert_eq!(bitmap.next_dirty(0, u64::MAX), model.next_dirty(0, u64::MAX));
            for granule in 0..model.granules() {
                let at = model.bytes_of(granule).start;
                prop_assert_eq!(bitmap.is_dirty(at), model.dirty.contains(&granule));
            }
        }
    }

    #[test]
    fn any_dirty_is_what_the_range_touches(
        (len, granularity) in (1..100_000_u64, Just(512)),
        marks in prop::collection::vec(range(100_000), 1..4),
        asked in range(100_000),
    ) {
        let mut bitmap = DirtyBitmap::new(len, granularity).unwrap();
        let mut model = Model { len, granularity, dirty: BTreeSet::new() };
        for mark in marks {
            bitmap.mark(mark.clone());
            model.mark(&mark);
        }
        let mut touched = Model { len, granularity, dirty: BTreeSet::new() };
        touched.mark(&asked);
        prop_assert_eq!(
            bitmap.any_dirty(asked),
            touched.dirty.intersection(&model.dirty).next().is_some()
        );
    }
}

#[test]
fn a_far_bit_is_found_through_the_summary() {
    let mut bitmap = DirtyBitmap::new(1 << 40, 64 << 10).unwrap();
    bitmap.mark((1 << 40) - 1..1 << 40);
    assert_eq!(bitmap.next_dirty(0, 1 << 20), Some((1 << 40) - (64 << 10)..1 << 40));
    bitmap.clear(0..1 << 40);
    assert_eq!(bitmap.next_dirty(0, 1 << 20), None);
}

#[test]
fn bad_shapes_are_refused() {
    for granularity in [0, 256, 513, 4 << 30] {
        assert_eq!(
            DirtyBitmap::new(1 << 20, granularity),
            Err(BitmapError::Granularity(granularity))
        );
    }
    assert_eq!(DirtyBitmap::new(u64::MAX, 512), Err(BitmapError::Length(u64::MAX)));
    let mut bitmap = DirtyBitmap::new(512 * 3, 512).unwrap();
    assert!(bitmap.merge(&DirtyBitmap::new(512 * 4, 512).unwrap()).is_err());
    assert!(bitmap.load_le_bytes(&[0; 7]).is_err());
    assert!(bitmap.load_le_bytes(&[8, 0, 0, 0, 0, 0, 0, 0]).is_err(), "granule 3 is past the end");
    assert_eq!(bitmap.dirty_granules(), 0, "a refused load leaves nothing behind");
}

#[test]
fn states_decide_what_is_recorded() {
    let mut bitmap = DirtyBitmap::new(4096, 512).unwrap();
    bitmap.disable().unwrap();
    bitmap.record(0..512);
    assert_eq!(bitmap.dirty_bytes(), 0);
    bitmap.enable().unwrap();
    bitmap.record(0..512);
    let view = bitmap.freeze().unwrap();
    assert_eq!(bitmap.state(), BitmapState::Frozen);
    assert!(bitmap.freeze().is_err() && bitmap.disable().is_err());
    bitmap.record(512..1024);
    bitmap.merge_back(view).unwrap();
    assert_eq!((bitmap.dirty_bytes(), bitmap.state()), (1024, BitmapState::Recording));
    bitmap.mark_inconsistent();
    bitmap.record(0..4096);
    bitmap.mark_all();
    bitmap.clear(0..512);
    assert!(bitmap.enable().is_err() && bitmap.freeze().is_err());
    assert!(
        bitmap.dirty_bytes() == 0 && !bitmap.is_dirty(0) && bitmap.next_dirty(0, 512).is_none()
    );
    bitmap.resize(8192).unwrap();
    assert_eq!((bitmap.len(), bitmap.state()), (8192, BitmapState::Inconsistent));
}

#[test]
fn what_a_disk_says_of_its_length_takes_no_more_memory_than_there_can_be() {
    let refused = DirtyBitmap::new(1 << 62, 65536).unwrap_err();
    assert_eq!(refused, BitmapError::Bits { len: 1 << 62, granularity: 65536 });
    assert_eq!(DirtyBitmap::inconsistent(1 << 62, 65536).unwrap().len(), 1 << 62);
    assert!(DirtyBitmap::new(1 << 62, 2 << 30).is_ok());
}

#[test]
fn merging_other_granularities_never_loses_a_byte() {
    let len = (1 << 20) + 700;
    let mut fine = DirtyBitmap::new(len, 512).unwrap();
    let mut coarse = DirtyBitmap::new(len, 64 << 10).unwrap();
    fine.mark(70_000..70_001);
    coarse.mark(len - 1..len);
    let mut into_coarse = coarse.clone();
    into_coarse.merge(&fine).unwrap();
    assert_eq!(into_coarse.next_dirty(0, u64::MAX), Some(65_536..131_072));
    assert_eq!(into_coarse.dirty_bytes(), 65_536 + 700);
    fine.merge(&coarse).unwrap();
    assert_eq!(fine.dirty_bytes(), 512 + 700);
    assert!(fine.is_dirty(70_000) && fine.is_dirty(len - 1));
}
