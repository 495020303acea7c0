use super::*;

/// Takes the first free clusters, as an allocation does; whether they read as zeroes.
fn take(space: &Space, want: u64) -> Option<(Range<u64>, bool)> {
    let (start, len, zero) = space.first_free()?;
    let count = len.min(want);
    space.remove_free(count);
    Some((start..start + count, zero))
}

#[test]
fn what_was_freed_while_a_search_waited_is_not_free_twice() {
    let space = Space::default();
    // The host has its space back, so it reads as zeroes. The search finds it once more.
    space.add_free(10..11, true);
    (8..11).for_each(|cluster| space.add_found(cluster));
    let mut taken = Vec::new();
    while let Some((clusters, _)) = take(&space, 3) {
        taken.extend(clusters);
    }
    assert_eq!(taken, [8, 9, 10]);
}

#[test]
fn what_is_found_twice_never_makes_zeroes_of_what_others_have_written() {
    let space = Space::default();
    space.add_free(10..11, true);
    (8..11).for_each(|cluster| space.add_found(cluster));
    let first = take(&space, 3).unwrap().0;
    let rest = (first.end..11).count() as u64;
    if rest != 0 {
        assert_eq!(take(&space, rest), Some((10..11, true)));
    }
    // All three are written to, and two of them freed: one goes back to the host, one does not.
    space.add_free(9..10, true);
    space.add_free(10..11, false);
    assert_eq!(take(&space, 2), Some((9..10, true)));
    assert_eq!(take(&space, 2), Some((10..11, false)));
}
