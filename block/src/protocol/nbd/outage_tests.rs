//! Servers that go away or hang: how long they are waited for, and how that is ended.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::clock::Clock;
use crate::executor::{Executor, Task, within};
use crate::net::SocketAddress;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::have_tool;

const LEN: usize = 1 << 20;

/// nbdkit behind a socket that ours is connected to.
struct Rig {
    executor: Executor,
    graph: BlockGraph,
    folder: tempfile::TempDir,
    server: Option<Child>,
}

impl Rig {
    fn new() -> Rig {
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk"), vec![7; LEN]).unwrap();
        Rig { executor, graph, folder, server: None }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn serve(&mut self, arguments: &[&str]) {
        self.kill();
        let disk = self.folder.path().join("disk");
        let (filters, parameters): (Vec<&str>, Vec<&str>) =
            arguments.iter().partition(|argument| argument.starts_with("--"));
        let mut command = Command::new("nbdkit");
        command.args(["-f", "--filter=delay"]).args(filters);
        command.arg("-U").arg(self.socket()).arg("file").arg(disk).args(parameters);
        command.stdout(Stdio::null());
        self.server = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().and_then(|()| server.wait()).unwrap();
            // Not there if it had not come as far as that.
            std::fs::remove_file(self.socket()).ok();
        }
    }

    async fn connect(&self, reconnect_delay: u32, connections: u32) -> BlockNode {
        let address = SocketAddress::unix(text(&self.socket()));
        let mut options = NbdOptions::new(address, None);
        options.reconnect_delay = reconnect_delay;
        options.open_timeout = 10;
        options.x_connections = Some(connections);
        self.graph.open(&BlockdevOptions::new(DriverOptions::Nbd(options))).await.unwrap()
    }

    fn read(&self, node: &BlockNode, at: u64) -> Task<Result<Vec<u8>>> {
        let node = node.clone();
        self.executor.spawn(async move {
            let into = IoBuf::alloc(512);
            node.read(at, into.clone()).await.map(|()| into.to_vec())
        })
    }

    async fn pause(&self, milliseconds: u64) {
        self.executor.sleep(Duration::from_millis(milliseconds)).await;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn with_rig(test: impl AsyncFnOnce(&mut Rig)) {
    if have_tool("nbdkit") {
        let mut rig = Rig::new();
        let executor = rig.executor.clone();
        executor.block_on(test(&mut rig));
    }
}

/// How long it took until `waiting` failed for want of a server.
async fn failed_after(rig: &Rig, waiting: Task<Result<Vec<u8>>>) -> Duration {
    let started = rig.executor.clock().now();
    assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::Disconnected);
    Duration::from_nanos(rig.executor.clock().now() - started)
}

#[test]
fn requests_outlive_one_server_after_another() {
    with_rig(async |rig| {
        let until_the_last_leaves = ["--filter=exitlast"];
        rig.serve(&until_the_last_leaves);
        let node = rig.connect(30, 1).await;
        for round in 1..4_u8 {
            node.write(0, IoBuf::from_vec(&[round; 512]), WriteFlags::FUA).await.unwrap();
            rig.kill();
            let reading = rig.read(&node, 0);
            rig.pause(100).await;
            assert!(!reading.is_finished());
            rig.serve(&until_the_last_leaves);
            assert_eq!(reading.await.unwrap(), [round; 512]);
        }
        // Taking leave of it ends this server, so it has heard of that.
        let mut server = rig.server.take().unwrap();
        rig.graph.remove(node.name()).await.unwrap();
        drop(node);
        rig.pause(1).await;
        assert!(server.wait().unwrap().success());
    });
}

#[test]
fn a_server_that_does_not_come_back_is_waited_for_as_long_as_was_asked() {
    with_rig(async |rig| {
        rig.serve(&[]);
        let node = rig.connect(2, 1).await;
        rig.kill();
        let reading = rig.read(&node, 0);
        let waited = failed_after(rig, reading).await;
        assert!((1500..8000).contains(&waited.as_millis()), "{waited:?}");
    });
}

#[test]
fn waiting_for_a_server_to_come_back_can_be_ended() {
    with_rig(async |rig| {
        rig.serve(&[]);
        let node = rig.connect(1000, 1).await;
        rig.kill();
        let reading = rig.read(&node, 0);
        rig.pause(200).await;
        assert!(!reading.is_finished());
        assert!(abandon(&rig.graph, node.name()));
        let waited = failed_after(rig, reading).await;
        assert!(waited < Duration::from_secs(2), "{waited:?}");
        rig.serve(&[]);
        rig.pause(300).await;
        assert!(rig.read(&node, 0).await.is_err(), "it was given up for good");
    });
}

#[test]
fn a_server_that_takes_for_ever_can_be_given_up() {
    with_rig(async |rig| {
        rig.serve(&["rdelay=600", "wdelay=600"]);
        let node = rig.connect(1000, 2).await;
        let requests: Vec<_> = (0..8).map(|place| rig.read(&node, place * 4096)).collect();
        rig.pause(200).await;
        assert!(requests.iter().all(|request| !request.is_finished()));
        assert!(abandon(&rig.graph, node.name()));
        for request in requests {
            let waited = failed_after(rig, request).await;
            assert!(waited < Duration::from_secs(2), "{waited:?}");
        }
        // Nothing of it can be written out any more, which keeps nobody from removing it.
        assert!(node.flush().await.is_err());
        rig.graph.remove(node.name()).await.unwrap();
        assert!(rig.graph.node(node.name()).is_some(), "this handle keeps it");
    });
}

#[test]
fn what_nobody_waits_for_is_not_sent_again() {
    with_rig(async |rig| {
        rig.serve(&["wdelay=600"]);
        let node = rig.connect(30, 1).await;
        let write = |at, byte| node.write(at, IoBuf::from_vec(&[byte; 512]), WriteFlags::NONE);
        let soon = Duration::from_millis(200);
        // One is under way when it is given up, the other finds no server.
        assert!(within(&rig.executor, soon, write(0, 1)).await.is_none());
        rig.kill();
        assert!(within(&rig.executor, soon, write(512, 2)).await.is_none());
        rig.serve(&[]);
        write(1024, 3).await.unwrap();
        rig.pause(100).await;
        for (at, byte) in [(0, 7), (512, 7), (1024, 3)] {
            assert_eq!(rig.read(&node, at).await.unwrap(), [byte; 512]);
        }
    });
}

#[test]
fn a_server_that_can_do_less_is_not_gone_on_with() {
    with_rig(async |rig| {
        rig.serve(&[]);
        let node = rig.connect(6, 1).await;
        rig.kill();
        let durable = {
            let node = node.clone();
            let write =
                async move { node.write(0, IoBuf::from_vec(&[1; 512]), WriteFlags::FUA).await };
            rig.executor.spawn(write)
        };
        // By itself this filter takes FUA away.
        rig.serve(&["--filter=fua"]);
        let error = durable.await.unwrap_err().to_string();
        assert!(error.contains("it cannot make single writes durable any more"), "{error}");
    });
}

#[test]
fn servers_that_can_do_more_or_less_take_turns() {
    with_rig(async |rig| {
        let plain = ["--filter=fua", "--filter=nocache", "--filter=nozero"];
        rig.serve(&plain);
        let node = rig.connect(6, 1).await;
        for (round, filters) in (1..).zip([&plain[..0], &plain[1..], &plain]) {
            rig.kill();
            rig.serve(filters);
            let data = IoBuf::from_vec(&[round; 512]);
            node.write(0, data, WriteFlags::FUA).await.unwrap();
            assert_eq!(rig.read(&node, 0).await.unwrap(), [round; 512]);
        }
    });
}

#[test]
fn what_is_said_in_the_end_names_the_reasons() {
    with_rig(async |rig| {
        rig.serve(&[]);
        let node = rig.connect(5, 1).await;
        rig.kill();
        let reading = rig.read(&node, 0);
        rig.serve(&["--filter=fua"]);
        rig.pause(2000).await;
        // From here on nobody is there.
        rig.kill();
        let error = reading.await.unwrap_err().to_string();
        assert!(error.contains("the server hung up"), "{error}");
        assert!(error.contains("it cannot make single writes durable any more"), "{error}");
    });
}
