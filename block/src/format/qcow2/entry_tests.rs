use super::super::header::Incompatible;
use super::*;

fn geometry(cluster_bits: u32, order: u32, features: Incompatible) -> Geometry {
    Geometry::new(Version::V3, cluster_bits, order, features).unwrap()
}

#[test]
fn refcounts_of_every_width_share_a_block_without_touching_each_other() {
    for order in 0..=6 {
        let geometry = geometry(9, order, Incompatible::NONE);
        let entries = usize::try_from(geometry.refcount_block_entries()).unwrap();
        assert_eq!(entries, (512 * 8) >> order);
        let value = |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3;
        let mut block = vec![0xff; 512];
        for index in (0..entries).rev() {
            put_refcount(&mut block, index, value(index) & geometry.refcount_max(), geometry);
        }
        for index in 0..entries {
            let expected = value(index) & geometry.refcount_max();
            assert_eq!(refcount(&block, index, geometry), expected, "{index} of order {order}");
        }
    }
    // Bit 0 is the least significant one, and wide refcounts are big-endian.
    let mut block = vec![0; 512];
    put_refcount(&mut block, 1, 1, geometry(9, 0, Incompatible::NONE));
    put_refcount(&mut block, 1, 0x102, geometry(9, 4, Incompatible::NONE));
    assert_eq!(block[..4], [2, 0, 1, 2]);
}

#[test]
fn compressed_descriptors_keep_their_place_and_an_upper_bound_of_their_length() {
    for bits in [9, 12, 16, 21] {
        let geometry = geometry(bits, 4, Incompatible::NONE);
        let last = 1_u64 << Compressed::offset_bits(geometry).min(56);
        for (offset, len) in [(1, 1), (511, 2), (1 << 20, 512), ((1 << 20) + 7, 400)] {
            let at = Compressed { offset, len };
            let entry = L2Entry::encode(Cluster::Compressed(at), false, geometry).unwrap();
            let Cluster::Compressed(back) = entry.decode(geometry).unwrap() else { panic!() };
            assert_eq!(back.offset, offset);
            assert_eq!((offset + back.len) % 512, 0);
            assert!((len..len + 512).contains(&back.len), "{len} became {}", back.len);
        }
        let past = Compressed { offset: last - 1, len: 2 };
        let error = L2Entry::encode(Cluster::Compressed(past), false, geometry).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }
}

#[test]
fn every_bit_pattern_is_an_entry_or_an_error() {
    let extended = Incompatible::EXTENDED_L2;
    let external = Incompatible::EXTERNAL_DATA;
    for (bits, features) in [
        (9, Incompatible::NONE),
        (21, Incompatible::NONE),
        (16, extended),
        (16, external),
        (16, extended.with(external, true)),
    ] {
        let geometry = geometry(bits, 4, features);
        let mut rng = crate::testing::Rng::new(u64::from(bits));
        for _ in 0..20_000 {
            let mask = u64::MAX << rng.below(64);
            let entry = L2Entry {
                descriptor: rng.below(u64::MAX) & mask | rng.below(2) | rng.below(4) << 62,
                bitmap: rng.below(u64::MAX) & rng.below(u64::MAX),
            };
            let Ok(cluster) = entry.decode(geometry) else { continue };
            if let Cluster::Compressed(at) = cluster {
                assert!(at.offset <= MAX_HOST_OFFSET && at.len <= 2 * geometry.cluster_size());
                continue;
            }
            let again = L2Entry::encode(cluster, entry.is_copied(), geometry).unwrap();
            assert_eq!(again.descriptor, entry.descriptor & !entry.reserved(geometry));
            assert_eq!(again.decode(geometry).unwrap(), cluster);
        }
    }
}

#[test]
fn subclusters_say_what_the_specification_says() {
    let geometry = geometry(16, 4, Incompatible::EXTENDED_L2);
    let entry = L2Entry { descriptor: 0x50000 | COPIED, bitmap: 0x8000_0000_0000_0003 };
    let parts = Parts { allocated: 3, zero: 1 << 31 };
    assert_eq!(entry.decode(geometry).unwrap(), Cluster::Standard { host: Some(0x50000), parts });
    for (descriptor, bitmap, what) in [
        (0x50000, 0x1_0000_0001, "both allocated and zero"),
        (0, 1, "no host cluster"),
        (0x50200, 1, "not at the start of a cluster"),
    ] {
        let error = L2Entry { descriptor, bitmap }.decode(geometry).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(what), "{error}");
    }
    let mut table = vec![0; 1 << 16];
    entry.put(&mut table, 4095, geometry);
    assert_eq!(L2Entry::get(&table, 4095, geometry), entry);
    assert_eq!(table[65520..65528], (0x50000 | COPIED).to_be_bytes());
}

#[test]
fn version_2_has_no_zero_clusters() {
    let geometry = Geometry::new(Version::V2, 16, 4, Incompatible::NONE).unwrap();
    let entry = L2Entry { descriptor: 1, bitmap: 0 };
    assert_eq!(entry.decode(geometry).unwrap_err().kind(), ErrorKind::Corrupt);
    let zero = Cluster::zero(geometry, None);
    assert!(L2Entry::encode(zero, false, geometry).is_err());
}

#[test]
fn host_address_zero_is_a_place_in_an_external_data_file_only() {
    let entry = L2Entry { descriptor: COPIED, bitmap: 0 };
    let external = geometry(16, 4, Incompatible::EXTERNAL_DATA);
    assert_eq!(entry.decode(external).unwrap(), Cluster::data(external, 0));
    let ordinary = geometry(16, 4, Incompatible::NONE);
    assert_eq!(entry.decode(ordinary).unwrap(), Cluster::UNALLOCATED);
}
