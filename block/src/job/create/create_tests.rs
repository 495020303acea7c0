use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::job::JobInfo;

/// Runs the job to its end.
fn make(graph: &BlockGraph, executor: &Executor, options: serde_json::Value) -> JobInfo {
    let image: CreateImage = serde_json::from_value(options).unwrap();
    start(graph, "c0".into(), image).unwrap();
    let job = JobRegistry::of(graph).find("c0").unwrap();
    executor.block_on(job.concluded());
    let info = job.info();
    job.dismiss().unwrap();
    info
}

#[test]
fn a_file_and_a_qcow2_image_on_it_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new").to_str().unwrap().to_owned();
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    for mode in ["off", "falloc", "full"] {
        let file = serde_json::json!({
            "driver": "file", "filename": &path, "size": 3 << 20, "preallocation": mode,
        });
        let info = make(&graph, &executor, file);
        assert_eq!((info.error, info.offset, info.len), (None, 1, 1));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
    }
    let file = BlockdevOptions { node_name: Some("file".into()), ..BlockdevOptions::file(&path) };
    executor.block_on(graph.open(&file)).unwrap();
    let image = serde_json::json!({
        "driver": "qcow2", "file": "file", "size": 1 << 30, "cluster-size": 4096,
        "lazy-refcounts": true, "compression-type": "zstd",
    });
    assert_eq!(make(&graph, &executor, image).error, None);
    let made: BlockdevOptions = serde_json::from_value(serde_json::json!({
        "driver": "qcow2", "node-name": "image", "file": "file",
    }))
    .unwrap();
    assert_eq!(executor.block_on(graph.open(&made)).unwrap().len(), 1 << 30);
    // Now that it is an image in use, it cannot be made anew.
    let image = serde_json::json!({"driver": "qcow2", "file": "file", "size": 512});
    let error = make(&graph, &executor, image).error.unwrap();
    assert!(error.contains("Permission conflict"), "{error}");
}

#[test]
fn options_that_make_no_sense_fail_the_job() {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let error = |options| make(&graph, &executor, options).error.unwrap();
    let odd = serde_json::json!({"driver": "qcow2", "file": "nosuch", "size": 512});
    assert_eq!(error(odd), "Cannot find device='nosuch' nor node-name='nosuch'");
    let odd = serde_json::json!({
        "driver": "file", "filename": "/nosuch/x", "size": 1, "preallocation": "metadata",
    });
    assert_eq!(error(odd), "Unsupported preallocation mode 'metadata'");
    let odd = serde_json::json!({"driver": "file", "filename": "/nosuch/x", "size": 1});
    assert_eq!(error(odd), "Could not create '/nosuch/x': No such file or directory");
    start(
        &graph,
        "c0".into(),
        serde_json::from_value(serde_json::json!(
            {"driver": "file", "filename": "/nosuch/x", "size": 1}
        ))
        .unwrap(),
    )
    .unwrap();
    let image = CreateImage::File(CreateFile {
        filename: String::new(),
        size: 0,
        preallocation: qcow2::Preallocation::Off,
        extent_size_hint: None,
    });
    assert_eq!(start(&graph, "c0".into(), image).unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn an_image_that_was_opened_to_hold_another_is_closed_in_order() {
    if !crate::testing::have_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outer").display().to_string();
    let qemu_img = |arguments: &[&str]| {
        crate::testing::tool("qemu-img", &[arguments, &[path.as_str()]].concat())
    };
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "size=16M,lazy_refcounts=on"]);
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let file = serde_json::json!({"driver": "file", "filename": path});
    let outer = serde_json::json!({"driver": "qcow2", "file": file});
    let inner = serde_json::json!({"driver": "qcow2", "file": outer, "size": 1 << 20});
    assert_eq!(make(&graph, &executor, inner).error, None);
    assert!(graph.nodes().is_empty());
    qemu_img(&["check", "-q"]);
}
