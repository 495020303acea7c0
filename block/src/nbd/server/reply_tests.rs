use super::*;

fn runs(bytes: &[u8], base: u64, whole: bool) -> Vec<(Range<usize>, bool)> {
    let buf = IoBuf::from_vec(bytes);
    Runs { buf: &buf, base, whole, at: 0 }.collect()
}

#[test]
fn a_buffer_is_cut_at_granules_of_the_export() {
    let granule = usize::try_from(GRANULE).unwrap();
    let mut bytes = vec![0; 3 * granule];
    bytes[granule + 5] = 1;
    assert_eq!(
        runs(&bytes, 0, false),
        [(0..granule, true), (granule..2 * granule, false), (2 * granule..3 * granule, true)]
    );
    // Half a granule further on in the export, the byte lies in the second granule still.
    let half = granule / 2;
    let expected =
        [(0..half, true), (half..half + granule, false), (half + granule..3 * granule, true)];
    assert_eq!(runs(&bytes, GRANULE / 2, false), expected);
    assert_eq!(runs(&bytes, 0, true), [(0..3 * granule, false)]);
    assert_eq!(runs(&[0; 100], 7, true), [(0..100, true)]);
    assert_eq!(runs(&[], 0, false), []);
}
