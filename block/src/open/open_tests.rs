use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::format::raw::RawOptions;
use crate::protocol::null::NullOptions;

fn graph() -> (Executor, BlockGraph) {
    let executor = Executor::new(Clock::real()).unwrap();
    (executor.clone(), BlockGraph::new(executor))
}

fn refusal(options: &BlockdevOptions) -> String {
    let (executor, graph) = graph();
    executor.block_on(graph.open(options)).unwrap_err().to_string()
}

fn null() -> BlockdevOptions {
    BlockdevOptions::new(DriverOptions::NullCo(NullOptions::default()))
}

#[test]
fn members_that_do_not_belong_or_are_missing_are_named() {
    let parse =
        |text: &str| serde_json::from_str::<BlockdevOptions>(text).map_err(|e| e.to_string());
    let window = r#"{"driver": "raw", "node-name": "n0", "cache": {"direct": true},
                     "file": {"driver": "host_device", "filename": "x"}, "offset": 512}"#;
    let DriverOptions::Raw(raw) = parse(window).unwrap().driver else { panic!() };
    let below = BlockdevRef::nested(BlockdevOptions::file("x"));
    assert_eq!(raw, RawOptions { file: below, offset: Some(512), size: None, guessed: false });
    let refused = |text: &str| parse(text).unwrap_err();
    assert!(refused(r#"{"driver": "file"}"#).contains("`filename`"));
    assert!(refused(r#"{"driver": "raw"}"#).contains("`file`"));
    assert!(refused(r#"{"driver": "null-co", "filename": "x"}"#).contains("`filename`"));
    assert!(refused(r#"{"driver": "nosuch"}"#).contains("`nosuch`"));
    let name = BlockdevOptions::raw(BlockdevRef::Name("nobody".into()));
    assert_eq!(refusal(&name), "Cannot find device='nobody' nor node-name='nobody'");
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let null = null();
    let odd = BlockdevOptions { detect_zeroes: Some(DetectZeroes::Unmap), ..null.clone() };
    assert!(refusal(&odd).contains("detect-zeroes to unmap"));
    let odd = BlockdevOptions { force_share: Some(true), ..null.clone() };
    assert_eq!(refusal(&odd), "force-share=on can only be used with read-only images");
    let cache = CacheOptions { direct: None, no_flush: Some(true) };
    assert!(refusal(&BlockdevOptions { cache: Some(cache), ..null }).contains("no-flush"));
}

#[test]
fn a_nested_node_takes_over_what_it_does_not_say() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (executor, graph) = graph();
    let options = BlockdevOptions {
        node_name: Some("n0".into()),
        read_only: Some(true),
        active: Some(false),
        ..BlockdevOptions::raw_file(file.path().to_str().unwrap())
    };
    let node = executor.block_on(graph.open(&options)).unwrap();
    let below = node.children()[0].node();
    assert!(below.is_read_only() && !below.is_active() && !node.is_active());
    assert_eq!(
        (node.options().discard, below.options().discard),
        (DiscardMode::Ignore, DiscardMode::Unmap)
    );
    assert!(below.name().starts_with("#block") && graph.is_owned(&node) && !graph.is_owned(&below));
    assert_eq!(node.filename(), below.filename());
}

#[test]
fn nesting_without_end_is_refused() {
    let mut options = BlockdevOptions::file("x");
    for _ in 0..1000 {
        options = BlockdevOptions::raw(BlockdevRef::nested(options));
    }
    assert_eq!(refusal(&options), "nodes are nested too deeply");
}

#[test]
fn a_null_disk_reads_zeroes_when_asked_to() {
    let (executor, graph) = graph();
    let null = NullOptions { size: Some(4096), latency_ns: Some(1000), read_zeroes: Some(true) };
    let options = BlockdevOptions::new(DriverOptions::NullCo(null));
    let node = executor.block_on(graph.open(&options)).unwrap();
    let buf = crate::IoBuf::from_vec(&[1; 100]);
    executor.block_on(node.read(0, buf.clone())).unwrap();
    assert!(node.len() == 4096 && buf.is_zero());
}

#[test]
fn a_null_disk_has_whole_sectors_and_no_more_than_there_are() {
    let disk = |size| NullOptions { size: Some(size), ..NullOptions::default() };
    let options = |size| BlockdevOptions::new(DriverOptions::NullCo(disk(size)));
    let (executor, graph) = graph();
    for (asked, len) in [(0, 0), (100, 512), (513, 1024), (1 << 62, 1 << 62)] {
        assert_eq!(executor.block_on(graph.open(&options(asked))).unwrap().len(), len);
    }
    for size in [i64::MAX.unsigned_abs(), u64::MAX] {
        assert_eq!(refusal(&options(size)), format!("a disk of {size} bytes is too large"));
    }
}
