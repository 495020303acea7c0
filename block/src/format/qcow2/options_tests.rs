use super::*;
use crate::open::BlockdevOptions;

fn options() -> Qcow2Options {
    Qcow2Options::new(BlockdevRef::nested(BlockdevOptions::file("x")))
}

#[test]
fn backing_may_be_absent_null_or_a_node() {
    let parse = |backing: &str| {
        let text = format!(r#"{{"file": "f"{backing}}}"#);
        serde_json::from_str::<Qcow2Options>(&text).unwrap().backing
    };
    assert_eq!(parse(""), BackingRef::FromImage);
    assert_eq!(parse(r#", "backing": null"#), BackingRef::None);
    assert_eq!(parse(r#", "backing": """#), BackingRef::None);
    let named = BackingRef::Node(BlockdevRef::Name("base".into()));
    assert_eq!(parse(r#", "backing": "base""#), named);
}

#[test]
fn overlap_checks_are_a_template_or_flags() {
    let parse = |check: &str| {
        let text = format!(r#"{{"file": "f", "overlap-check": {check}}}"#);
        serde_json::from_str::<Qcow2Options>(&text).unwrap().overlap_check.unwrap().resolve()
    };
    let constant = parse(r#""constant""#);
    assert_eq!((constant.active_l1, constant.active_l2), (Some(true), Some(false)));
    let odd = parse(r#"{"template": "none", "inactive-l2": true}"#);
    assert_eq!((odd.main_header, odd.inactive_l2), (Some(false), Some(true)));
    let default = parse("{}");
    assert_eq!((default.active_l2, default.inactive_l2), (Some(true), Some(false)));
}

#[test]
fn caches_follow_what_was_said() {
    let sizes = |options: &Qcow2Options| options.cache_sizes(65536, 128 << 20);
    let default = sizes(&options()).unwrap();
    assert_eq!((default.slice, default.l2_slices, default.refcount_slices), (4096, 8192, 256));
    let total = Qcow2Options { cache_size: Some(1 << 20), ..options() };
    let split = sizes(&total).unwrap();
    assert_eq!((split.l2_slices, split.refcount_slices), (252, 4));
    let small = Qcow2Options { l2_cache_size: Some(0), refcount_cache_size: Some(0), ..options() };
    let split = sizes(&small).unwrap();
    assert_eq!((split.l2_slices, split.refcount_slices), (2, 4));
    // No more than the image has tables.
    assert_eq!(options().cache_sizes(65536, 8192).unwrap().l2_slices, 2);
    for bad in [
        Qcow2Options { l2_cache_size: Some(2 << 20), ..total.clone() },
        Qcow2Options { refcount_cache_size: Some(2 << 20), ..total.clone() },
        Qcow2Options { l2_cache_size: Some(1), refcount_cache_size: Some(1), ..total.clone() },
        Qcow2Options { l2_cache_entry_size: Some(1000), ..options() },
        Qcow2Options { l2_cache_entry_size: Some(1 << 17), ..options() },
        Qcow2Options { refcount_cache_size: Some(u64::MAX), ..options() },
    ] {
        assert_eq!(sizes(&bad).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}
