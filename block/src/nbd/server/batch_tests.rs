//! When replies leave: a client that has sent many requests at once gets the first while the rest is worked on.

use std::cell::RefCell;
use std::io::Write;
use std::ops::Range;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::wire_tests::{READ, Reply, Wire};
use super::*;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{Edge, EdgePerms};
use crate::executor::Executor;
use crate::node::NodeOptions;

const SECTOR: u64 = 512;
/// Requests that a client sends at once, and those of them that are answered before the disk stops.
const BATCH: u64 = 32;
const FIRST: u64 = 16;

/// A disk of zeroes that stops its whole thread at one request until the client has said something.
struct Patient {
    client: Receiver<()>,
    /// Whether the client has said it in time.
    heard: Rc<RefCell<Option<bool>>>,
}

fn refuse<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "this disk is only read"))
}

impl BlockDriver for Patient {
    const FORMAT: &'static str = "patient";

    fn limits(&self) -> Limits {
        Limits::NONE
    }
    fn len(&self) -> u64 {
        BATCH * SECTOR
    }
    fn filename(&self) -> Option<String> {
        None
    }
    fn children(&self) -> Vec<Edge> {
        Vec::new()
    }
    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }
    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        if at == FIRST * SECTOR {
            let heard = self.client.recv_timeout(Duration::from_secs(5)).is_ok();
            self.heard.replace(Some(heard));
        }
        into.fill_zero();
        Ok(())
    }
    async fn write(&self, _at: u64, _from: IoBuf, _flags: WriteFlags) -> Result<()> {
        refuse()
    }
    async fn write_zeroes(&self, _range: Range<u64>, _flags: WriteFlags) -> Result<()> {
        refuse()
    }
    async fn discard(&self, _range: Range<u64>) -> Result<()> {
        refuse()
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        Ok(Extent { kind: ExtentKind::Zero, len: range.end - range.start })
    }
    async fn resize(&self, _len: u64) -> Result<()> {
        refuse()
    }
    async fn grow(&self, _len: u64) -> Result<ExtentKind> {
        refuse()
    }
    async fn refresh(&self) -> Result<()> {
        Ok(())
    }
    async fn activate(&self, _only_if: Option<u64>) -> Result<()> {
        Ok(())
    }
    async fn inactivate(&self) -> Result<()> {
        Ok(())
    }
    async fn generation(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

#[test]
fn the_first_replies_of_a_batch_leave_while_the_rest_is_worked_on() {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let (says, client) = channel();
    let heard = Rc::new(RefCell::new(None));
    let disk = Patient { client, heard: Rc::clone(&heard) };
    executor.block_on(async {
        graph.add(Some("disk"), disk, NodeOptions::default()).await.unwrap();
        let address = SocketAddress::unix(socket.to_str().unwrap());
        let server = Server::bind(&graph, ServerOptions::new(address)).await.unwrap();
        server.open();
        server.add(ExportOptions::new("export", "disk")).await.unwrap();
        let client = crate::thread::spawn("client", move || {
            let mut wire = Wire::connect(&socket, "disk");
            let requests = (0..BATCH).map(|at| Wire::request(0, READ, at, at * SECTOR, SECTOR));
            let batch: Vec<u8> = requests.flatten().collect();
            wire.stream.write_all(&batch).unwrap();
            for asked in 0..BATCH {
                let Reply::Chunk { cookie, .. } = wire.reply() else { panic!("no data") };
                assert_eq!(cookie, asked);
                if asked + 1 == FIRST {
                    says.send(()).unwrap();
                }
            }
        });
        let client = client.unwrap();
        while !client.is_finished() {
            executor.sleep(Duration::from_millis(2)).await;
        }
        client.join().unwrap();
        server.stop().await;
    });
    assert_eq!(heard.take(), Some(true), "no reply came before the last request was done");
}
