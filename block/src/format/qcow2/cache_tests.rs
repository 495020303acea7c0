use super::*;
use crate::clock::Clock;
use crate::executor::Executor;

const LEN: usize = 512;

fn slice(byte: u8) -> Vec<u8> {
    vec![byte; LEN]
}

#[test]
fn what_was_not_used_goes_first_and_what_is_dirty_stays() {
    let cache = SliceCache::new(LEN, 3);
    for key in 0..3 {
        cache.insert(key * 512, slice(0));
    }
    cache.modify(0, 0..1, |bytes| bytes[0] = 1).unwrap();
    for key in 3..20 {
        cache.insert(key * 512, slice(0));
        assert_eq!(cache.len(), 3);
        assert!(cache.contains(0) && cache.contains(key * 512));
    }
    assert!(cache.is_dirty() && !cache.is_stuck());
}

#[test]
fn a_snapshot_keeps_what_it_was_and_later_changes_stay_dirty() {
    let cache = SliceCache::new(LEN, 4);
    cache.insert(512, slice(0));
    cache.insert(0, slice(0));
    cache.modify(512, 0..1, |bytes| bytes[7] = 1).unwrap();
    cache.modify(0, 0..1, |bytes| bytes[7] = 2).unwrap();
    let taken = cache.take_dirty();
    assert_eq!(
        taken.iter().map(|piece| (piece.at, piece.bytes[7])).collect::<Vec<_>>(),
        [(0, 2), (512, 1)]
    );
    cache.modify(512, 0..1, |bytes| bytes[7] = 3).unwrap();
    assert_eq!(taken[1].bytes[7], 1);
    cache.written(&taken, true);
    let again = cache.take_dirty();
    assert_eq!((again.len(), again[0].at, again[0].bytes[7]), (1, 512, 3));
    // A write that failed is tried again.
    cache.written(&again, false);
    assert_eq!(cache.take_dirty().len(), 1);
}

#[test]
fn to_forget_a_large_range_takes_no_longer_than_the_cache_is_large() {
    let cache = SliceCache::new(LEN, 4);
    for key in [0, 512, 1 << 40, 1 << 55] {
        cache.insert(key, slice(0));
    }
    cache.modify(512, 0..1, |bytes| bytes[0] = 1).unwrap();
    cache.forget(512..1 << 55);
    assert!(cache.contains(0) && cache.contains(1 << 55));
    assert_eq!((cache.len(), cache.is_dirty()), (2, false));
    cache.forget(0..512);
    assert!(!cache.contains(0) && cache.contains(1 << 55));
}

#[test]
fn slices_on_their_way_to_the_file_are_not_given_up() {
    let cache = SliceCache::new(LEN, 2);
    cache.insert(0, slice(0));
    cache.insert(512, slice(0));
    cache.modify(0, 0..1, |bytes| bytes[0] = 1).unwrap();
    cache.modify(512, 0..1, |bytes| bytes[0] = 1).unwrap();
    let taken = cache.take_dirty();
    assert!(cache.is_stuck());
    cache.insert(1024, slice(0));
    assert!(cache.contains(0) && cache.contains(512));
    cache.written(&taken, true);
    cache.insert(1536, slice(0));
    assert_eq!(cache.len(), 2);
}

#[test]
fn a_slice_is_loaded_once_for_all_and_again_if_that_was_given_up() {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let (cache, loads) = (Rc::new(SliceCache::new(LEN, 4)), Rc::new(std::cell::Cell::new(0)));
    let load = |millis: u64| {
        let (cache, loads, executor) = (Rc::clone(&cache), Rc::clone(&loads), executor.clone());
        async move {
            let fetch = async || {
                loads.set(loads.get() + 1);
                executor.sleep(std::time::Duration::from_millis(millis)).await;
                Ok(slice(5))
            };
            cache.load(0, fetch).await.unwrap();
        }
    };
    let first = executor.spawn(load(10));
    let second = executor.spawn(load(1));
    executor.run_until_stalled();
    executor.block_on(async {
        first.cancel().await;
        second.await;
    });
    executor.block_on(load(1));
    assert_eq!((loads.get(), cache.read(0, |bytes| bytes[0])), (2, Some(5)));
}

#[test]
fn checksums_follow_every_change_and_nothing_else() {
    let cache = SliceCache::new(LEN, 4);
    cache.insert(0, (0..LEN).map(|byte| byte.to_le_bytes()[0]).collect());
    cache.insert(512, slice(9));
    for round in 0..200_usize {
        let (first, count) = (round * 7 % 61, round % 3 + 1);
        cache.modify(0, first..first + count, |bytes| bytes[round % 8] ^= 0x11).unwrap();
    }
    cache.modify(512, 5..6, |bytes| bytes[0] = 1).unwrap();
    assert!(cache.take_dirty().iter().all(Piece::is_intact));
    cache.damage(512, 100);
    cache.modify(0, 0..1, |_| ()).unwrap();
    // Not even a change of the very word hides it.
    cache.modify(512, 12..13, |bytes| bytes.fill(0)).unwrap();
    let intact: Vec<_> = cache.take_dirty().iter().map(Piece::is_intact).collect();
    assert_eq!(intact, [true, false]);
}
