use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;
use crate::error::ErrorKind;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct DiskV1 {
    sectors: u32,
}

impl State for DiskV1 {
    const KIND: &'static str = "disk";
    const VERSION: u16 = 1;
    type Older = Self;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct DiskV2 {
    bytes: u64,
}

impl State for DiskV2 {
    const KIND: &'static str = "disk";
    const VERSION: u16 = 2;
    type Older = DiskV1;
}

impl From<DiskV1> for DiskV2 {
    fn from(old: DiskV1) -> DiskV2 {
        DiskV2 { bytes: u64::from(old.sectors) * 512 }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Disk {
    bytes: u64,
    serial: Bytes,
    queues: Vec<u16>,
    #[serde(default)]
    note: Option<String>,
}

impl State for Disk {
    const KIND: &'static str = "disk";
    const VERSION: u16 = 3;
    type Older = DiskV2;
}

impl From<DiskV2> for Disk {
    fn from(old: DiskV2) -> Disk {
        Disk { bytes: old.bytes, serial: Bytes::default(), queues: vec![], note: None }
    }
}

fn sample() -> Disk {
    Disk { bytes: 4096, serial: Bytes(vec![0xff; 3]), queues: vec![7], note: Some("x".into()) }
}

#[test]
fn every_older_version_loads_as_the_newest() {
    let mut sections = Sections::new();
    sections.save("a", &DiskV1 { sectors: 2 }).unwrap();
    sections.save("b", &DiskV2 { bytes: 7 }).unwrap();
    sections.save("c", &sample()).unwrap();
    let mut sections = Sections::decode(&sections.encode().unwrap()).unwrap();
    assert_eq!(sections.load::<Disk>("a").unwrap().bytes, 1024);
    assert_eq!(sections.load::<Disk>("b").unwrap().bytes, 7);
    assert_eq!(sections.load::<Disk>("c").unwrap(), sample());
    sections.finish().unwrap();
}

#[test]
fn a_newer_or_unreachable_version_is_refused_with_both_numbers() {
    let newer = Section::save("a", &sample()).unwrap();
    let error = newer.load::<DiskV2>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::State);
    assert_eq!(
        error.to_string(),
        "section 'disk' of 'a' has version 3, newer than 2, the newest known here"
    );
    let zero = Section::from_parts("disk", "a", 0, false, vec![0xa0]).unwrap();
    assert!(zero.load::<Disk>().unwrap_err().to_string().contains("version 0, older than 1"));
}

#[test]
fn bytes_are_a_byte_string_and_read_old_number_lists() {
    let section = Section::save("a", &sample()).unwrap();
    assert!(golden::field_list(section.payload()).unwrap().contains("serial: bytes"));
    let mut as_list = Vec::new();
    ciborium::into_writer(&vec![1u8, 200], &mut as_list).unwrap();
    let bytes: Bytes = ciborium::from_reader(as_list.as_slice()).unwrap();
    assert_eq!(bytes, Bytes(vec![1, 200]));
}

#[test]
fn an_extra_field_is_ignored_and_a_missing_optional_one_is_default() {
    #[derive(Serialize)]
    struct Other {
        bytes: u64,
        serial: Bytes,
        queues: Vec<u16>,
        colour: u8,
    }
    let other = Other { bytes: 1, serial: Bytes::default(), queues: vec![], colour: 3 };
    let mut payload = Vec::new();
    ciborium::into_writer(&other, &mut payload).unwrap();
    let section = Section::from_parts("disk", "a", 3, false, payload).unwrap();
    let disk = section.load::<Disk>().unwrap();
    assert_eq!((disk.bytes, disk.note), (1, None));
}

#[test]
fn missing_doubled_and_left_over_sections_are_named() {
    let mut sections = Sections::new();
    sections.save("sda", &sample()).unwrap();
    assert_eq!(
        sections.save("sda", &sample()).unwrap_err().to_string(),
        "two sections 'disk' of 'sda'"
    );
    assert_eq!(
        sections.load::<Disk>("sdb").unwrap_err().to_string(),
        "section 'disk' of 'sdb' is missing from the stream"
    );
    let optional = Section::save("hint", &DiskV1 { sectors: 1 }).unwrap().optional();
    sections.put(optional).unwrap();
    let error = sections.clone().finish().unwrap_err().to_string();
    assert!(error.ends_with("do not exist here: 'disk' of 'sda'"), "{error}");
    sections.load::<Disk>("sda").unwrap();
    sections.finish().unwrap();
}

#[test]
fn trailing_bytes_after_the_state_are_refused() {
    let mut payload = Section::save("a", &sample()).unwrap().payload().to_vec();
    payload.push(0);
    let section = Section::from_parts("disk", "a", 3, false, payload).unwrap();
    assert!(section.load::<Disk>().unwrap_err().to_string().ends_with("1 bytes too many"));
}

#[test]
fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    let mut payload = vec![0x81; 1 << 20];
    payload.push(0);
    let section = Section::from_parts("disk", "a", 3, false, payload).unwrap();
    assert_eq!(section.load::<Disk>().unwrap_err().kind(), ErrorKind::State);
}

#[test]
fn golden_files_notice_changed_fields_and_broken_chains() {
    let dir = tempfile::tempdir().unwrap();
    let put = |version: u16, section: &Section| {
        let path = dir.path().join(format!("disk-v{version}.cbor"));
        std::fs::write(path, section.payload()).unwrap();
    };
    assert!(golden::check(dir.path(), &sample()).unwrap_err().contains("FERRY_BLESS=1"));
    put(1, &Section::save("g", &DiskV1 { sectors: 1 }).unwrap());
    put(2, &Section::save("g", &DiskV2 { bytes: 1 }).unwrap());
    put(3, &Section::save("g", &sample()).unwrap());
    golden::check(dir.path(), &sample()).unwrap();

    let without_note = Disk { note: None, ..sample() };
    let error = golden::check(dir.path(), &without_note).unwrap_err();
    assert!(error.contains("gone: [note: text], new: [note: null]"), "{error}");

    put(2, &Section::save("g", &DiskV1 { sectors: 1 }).unwrap());
    assert!(golden::check(dir.path(), &sample()).unwrap_err().contains("disk-v2.cbor: no longer"));
}

proptest! {
    #[test]
    fn a_mutated_section_never_panics_and_never_passes_its_checksum(
        at in 0usize..64, to in any::<u8>()
    ) {
        let mut bytes = Vec::new();
        Section::save("sda", &sample()).unwrap().encode(&mut bytes).unwrap();
        let at = at % bytes.len();
        prop_assume!(bytes[at] != to);
        bytes[at] = to;
        prop_assert!(Sections::decode(&bytes).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(mut sections) = Sections::decode(&bytes) {
            drop(sections.load::<Disk>("a"));
        }
        if let Ok(section) = Section::from_parts("disk", "a", 3, false, bytes) {
            drop(section.load::<Disk>());
        }
    }
}
