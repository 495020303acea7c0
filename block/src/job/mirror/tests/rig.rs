//! A device over a simulated source disk, a target disk beside it, and a log of all events.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use crate::backend::{BackendKind, BlockBackend};
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::edge::EdgePerms;
use crate::error::Result;
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::job::mirror::{self, CopyMode, MirrorOptions, SyncMode};
use crate::job::registry::JobRef;
use crate::job::{BlockEvent, JobInfo, JobRegistry};
use crate::node::{AttachedBitmap, NodeOptions};
use crate::testing::{SimDisk, SimOptions};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const KIB: u64 = 1 << 10;

/// What listens to events beside the log.
type Listener = Rc<dyn Fn(&BlockEvent)>;

#[derive(Clone)]
pub(super) struct Rig {
    pub(super) executor: Executor,
    pub(super) graph: BlockGraph,
    pub(super) source: SimDisk,
    pub(super) target: SimDisk,
    pub(super) device: BlockBackend,
    log: Rc<RefCell<Vec<String>>>,
    listener: Rc<RefCell<Option<Listener>>>,
}

impl Rig {
    /// Runs `test` with a device `d0` over node `src` and a node `dst`, both of `len` bytes.
    pub(super) fn run<T, F: Future<Output = T>>(len: u64, test: impl FnOnce(Rig) -> F) -> T {
        Rig::run_with(SimOptions::new(len, 1), SimOptions::new(len, 2), test)
    }

    pub(super) fn run_with<T, F: Future<Output = T>>(
        source: SimOptions,
        target: SimOptions,
        test: impl FnOnce(Rig) -> F,
    ) -> T {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        executor.block_on(async {
            let source = SimDisk::new(&executor, source);
            let target = SimDisk::new(&executor, target);
            let options = NodeOptions::default();
            let node = graph.add(Some("src"), source.clone(), options).await.unwrap();
            graph.add(Some("dst"), target.clone(), options).await.unwrap();
            let perms = EdgePerms::READ_WRITE;
            let device = graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap();
            let rig = Rig {
                executor: executor.clone(),
                graph,
                source,
                target,
                device,
                log: Rc::default(),
                listener: Rc::default(),
            };
            let (log, listener) = (Rc::clone(&rig.log), Rc::clone(&rig.listener));
            JobRegistry::of(&rig.graph).set_event_sink(Rc::new(move |event| {
                log.borrow_mut().push(short(&event));
                let listener = listener.borrow().clone();
                if let Some(listener) = listener {
                    listener(&event);
                }
            }));
            test(rig).await
        })
    }

    /// A mirror from `d0` to `dst` called `m0`, of everything, in the background.
    pub(super) fn options(&self) -> MirrorOptions {
        MirrorOptions {
            job_id: Some("m0".into()),
            ..MirrorOptions::new("d0", "dst", SyncMode::Full)
        }
    }

    pub(super) fn blocking(&self) -> MirrorOptions {
        MirrorOptions { copy_mode: CopyMode::WriteBlocking, ..self.options() }
    }

    pub(super) async fn start(&self, options: MirrorOptions) -> JobRef {
        let id = mirror::start(&self.graph, options).await.unwrap();
        self.job(&id)
    }

    /// Starts a mirror and waits until it is ready.
    pub(super) async fn ready(&self, options: MirrorOptions) -> JobRef {
        let job = self.start(options).await;
        self.wait_for("READY").await;
        job
    }

    pub(super) fn job(&self, id: &str) -> JobRef {
        JobRegistry::of(&self.graph).find(id).unwrap()
    }

    pub(super) fn jobs(&self) -> Vec<JobInfo> {
        JobRegistry::of(&self.graph).query_jobs()
    }

    pub(super) fn listen(&self, listener: impl Fn(&BlockEvent) + 'static) {
        *self.listener.borrow_mut() = Some(Rc::new(listener));
    }

    /// Every event so far, short.
    pub(super) fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    pub(super) fn take_log(&self) -> Vec<String> {
        self.log.take()
    }

    /// Waits until an event that starts with `prefix` is in the log.
    pub(super) async fn wait_for(&self, prefix: &str) {
        for _ in 0..100_000 {
            if self.log.borrow().iter().any(|event| event.starts_with(prefix)) {
                return;
            }
            self.sleep_ms(1).await;
        }
        panic!("no '{prefix}' in {:?}; jobs: {:?}", self.log(), self.jobs());
    }

    pub(super) async fn sleep_ms(&self, ms: u64) {
        self.executor.sleep(Duration::from_millis(ms)).await;
    }

    pub(super) async fn write(&self, at: u64, byte: u8, len: u64) -> Result<()> {
        self.device.write(at, filled(byte, len), WriteFlags::NONE).await
    }

    pub(super) async fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let buf = IoBuf::alloc(usize::try_from(len).unwrap());
        self.device.read(at, buf.clone()).await.unwrap();
        buf.to_vec()
    }

    /// Fills the source with bytes that differ from place to place.
    pub(super) fn fill_source(&self) {
        self.source.fill(0, &pattern(7, self.device.len()));
    }

    /// The job's bitmap, as it hangs on the source.
    pub(super) fn bitmap(&self) -> Rc<AttachedBitmap> {
        Rc::clone(&self.graph.node("src").unwrap().bitmaps()[0])
    }

    pub(super) fn is_dirty(&self, at: u64) -> bool {
        self.bitmap().bits.borrow().is_dirty(at)
    }

    pub(super) fn device_node(&self) -> String {
        self.device.node().name().to_owned()
    }

    fn node_names(&self) -> Vec<String> {
        self.graph.nodes().iter().map(|node| node.name().to_owned()).collect()
    }

    /// Waits until nobody who drains the graph keeps nodes that are not in it any more, and all has been
    /// answered that a cancelled job has asked for.
    pub(super) async fn settled(&self) {
        for _ in 0..100 {
            if self.node_names().len() == 2 && self.graph.backends().len() == 1 {
                return;
            }
            self.sleep_ms(1).await;
        }
    }

    /// Nothing of a job is left in the graph.
    pub(super) fn assert_no_trace(&self) {
        assert_eq!(self.node_names(), ["src", "dst"]);
        assert_eq!(self.graph.backends().len(), 1, "{:?}", self.graph.backends());
        assert!(self.graph.nodes().iter().all(|node| node.bitmaps().is_empty()));
        let holders = |name: &str| self.graph.node(name).unwrap().0.live_parents().len();
        let (used, free) =
            if self.device_node() == "src" { ("src", "dst") } else { ("dst", "src") };
        assert_eq!((holders(used), holders(free)), (1, 0));
        assert!(self.device.node().perms().needs == EdgePerms::READ_WRITE.needs);
    }

    pub(super) fn assert_equal(&self) {
        assert!(self.source.contents() == self.target.contents(), "source and target differ");
    }
}

pub(super) fn filled(byte: u8, len: u64) -> IoBuf {
    IoBuf::from_vec(&vec![byte; usize::try_from(len).unwrap()])
}

/// Bytes that tell places apart, and seeds.
pub(super) fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let byte =
        |at: u64| (at.wrapping_mul(31) ^ (at >> 9).wrapping_mul(167) ^ seed).to_le_bytes()[0];
    (0..len).map(|at| byte(at) | 1).collect()
}

/// An event in a few words.
fn short(event: &BlockEvent) -> String {
    match event {
        BlockEvent::JobStatusChange { status, .. } => status.to_string(),
        BlockEvent::BlockJobReady(report) => format!("READY {}/{}", report.offset, report.len),
        BlockEvent::BlockJobCompleted { report, error: None } => {
            format!("COMPLETED {}/{}", report.offset, report.len)
        }
        BlockEvent::BlockJobCompleted { error: Some(error), .. } => format!("FAILED {error}"),
        BlockEvent::BlockJobCancelled(_) => "CANCELLED".into(),
        BlockEvent::BlockJobPending { .. } => "PENDING".into(),
        BlockEvent::BlockJobError { operation, action, .. } => {
            format!("ERROR {} {}", operation.as_str(), action.as_str())
        }
        // No job's: how they are worded is of no account here.
        other => format!("{other:?}"),
    }
}
