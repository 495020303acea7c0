use super::*;
use crate::clock::Clock;
use crate::edge::Perms;
use crate::executor::Executor;
use crate::format::qcow2::check::check;
use crate::format::qcow2::create::{CreateOptions, create};
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{Model, conformance};

/// The image file as an edge that may do everything.
async fn container(graph: &BlockGraph, path: &str) -> Edge {
    let file = graph.open(&BlockdevOptions::file(path)).await.unwrap();
    let perms = EdgePerms { needs: Perms::ALL, shares: Perms::NONE };
    let edge = graph.edge(&file, ChildRole::File, perms).unwrap();
    graph.disown(&file);
    edge
}

#[test]
fn everything_written_is_stored_compressed_and_read_back() {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    executor.block_on(async {
        let edge = container(&graph, path).await;
        create(&edge, None, &CreateOptions::new(300 << 10)).await.unwrap();
        drop(edge);
        let text = format!(
            r#"{{"driver": "compress", "discard": "unmap", "file": {{"driver": "qcow2",
                "discard": "unmap", "file": {{"driver": "file", "filename": "{path}"}}}}}}"#
        );
        let options: BlockdevOptions = serde_json::from_str(&text).unwrap();
        let node = graph.open(&options).await.unwrap();
        conformance(&executor, &node, 1).await;
        let mut model = Model::learn(&node, 0..node.len()).await;
        for at in [0, 100_000, 200_000] {
            model.write(at, &[at.to_le_bytes()[1] | 1; 70_000], WriteFlags::FUA).await.unwrap();
        }
        model.check(0..300 << 10).await;
        graph.inactivate_all().await.unwrap();
        graph.disown(&node);
        drop((node, model));
        let edge = container(&graph, path).await;
        let report = check(&edge, None).await.unwrap();
        assert!(report.is_clean() && report.compressed_clusters >= 4, "{report:?}");
    });
}

#[test]
fn a_format_that_cannot_compress_is_refused() {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = BlockdevOptions::raw_file(file.path().to_str().unwrap());
    let driver = DriverOptions::Compress(CompressOptions { file: BlockdevRef::nested(below) });
    let error = executor.block_on(graph.open(&BlockdevOptions::new(driver))).unwrap_err();
    assert_eq!(error.to_string(), "Compression is not supported for format raw");
}
