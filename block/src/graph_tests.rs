use std::ops::Range;

use super::*;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::{Extent, ExtentKind, Limits, WriteFlags};

/// What the drivers of one test did, in order.
type Log = Rc<RefCell<Vec<String>>>;

/// A disk in memory that logs, with or without a child that it passes everything to, and that can
/// be told to refuse things.
struct Fake {
    name: &'static str,
    child: Option<Edge>,
    log: Log,
    refuse: Rc<RefCell<Vec<&'static str>>>,
}

impl Fake {
    fn note(&self, what: &'static str) -> Result<()> {
        if self.refuse.borrow().iter().any(|refused| format!("{}.{what}", self.name) == *refused) {
            return Err(Error::new(ErrorKind::Io, format!("{} refuses to {what}", self.name)));
        }
        self.log.borrow_mut().push(format!("{}.{what}", self.name));
        Ok(())
    }
}

impl BlockDriver for Fake {
    const FORMAT: &'static str = "fake";
    fn limits(&self) -> Limits {
        Limits::NONE
    }
    fn len(&self) -> u64 {
        1 << 20
    }
    fn filename(&self) -> Option<String> {
        None
    }
    fn children(&self) -> Vec<Edge> {
        self.child.iter().cloned().collect()
    }
    fn set_permissions(&self, held: EdgePerms) -> Result<()> {
        let writes = held.needs.contains(crate::Perms::WRITE);
        self.note(if writes { "hold write" } else { "hold" })
    }
    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.note("read")?;
        match &self.child {
            Some(child) => child.read(at, into).await,
            None => Ok(()),
        }
    }
    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        self.note("write")?;
        match &self.child {
            Some(child) => child.write(at, from, flags).await,
            None => Ok(()),
        }
    }
    async fn write_zeroes(&self, _range: Range<u64>, _flags: WriteFlags) -> Result<()> {
        Ok(())
    }
    async fn discard(&self, _range: Range<u64>) -> Result<()> {
        Ok(())
    }
    async fn flush(&self) -> Result<()> {
        self.note("flush")
    }
    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        Ok(Extent { kind: ExtentKind::Data, len: range.end - range.start })
    }
    async fn resize(&self, _len: u64) -> Result<()> {
        Ok(())
    }
    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.resize(len).await.map(|()| ExtentKind::Zero)
    }
    async fn refresh(&self) -> Result<()> {
        Ok(())
    }
    async fn activate(&self, _only_if: Option<u64>) -> Result<()> {
        self.note("activate")
    }
    async fn inactivate(&self) -> Result<()> {
        self.note("inactivate")
    }
    async fn generation(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

struct Bench {
    executor: Executor,
    graph: BlockGraph,
    log: Log,
    refuse: Rc<RefCell<Vec<&'static str>>>,
}

impl Bench {
    fn new() -> Bench {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        Bench { executor, graph, log: Rc::default(), refuse: Rc::default() }
    }

    fn try_add(&self, name: &'static str, options: NodeOptions) -> Result<BlockNode> {
        let (log, refuse) = (self.log.clone(), self.refuse.clone());
        let fake = Fake { name, child: None, log, refuse };
        self.executor.block_on(self.graph.add(Some(name), fake, options))
    }

    fn disk(&self, name: &'static str) -> BlockNode {
        self.try_add(name, NodeOptions::default()).unwrap()
    }

    fn filter(&self, name: &'static str, child: &BlockNode) -> BlockNode {
        let child = Some(self.graph.filter_edge(child, ChildRole::Filtered).unwrap());
        let fake = Fake { name, child, log: self.log.clone(), refuse: self.refuse.clone() };
        self.executor.block_on(self.graph.add(Some(name), fake, NodeOptions::default())).unwrap()
    }

    fn root(&self, kind: BackendKind, name: &str, node: &BlockNode) -> Result<BlockBackend> {
        self.graph.add_backend(kind, name, node, EdgePerms::READ_WRITE)
    }

    fn device(&self, name: &str, node: &BlockNode) -> BlockBackend {
        self.root(BackendKind::Device, name, node).unwrap()
    }

    fn write(&self, root: &BlockBackend) -> Result<()> {
        self.executor.block_on(root.write(0, IoBuf::alloc(512), WriteFlags::NONE))
    }

    fn taken_log(&self) -> Vec<String> {
        self.log.take()
    }
}

#[test]
fn names_are_checked_and_unique() {
    let bench = Bench::new();
    let disk = bench.disk("disk0");
    let text = |name| bench.try_add(name, NodeOptions::default()).unwrap_err().to_string();
    assert_eq!(text("disk0"), "Duplicate nodes with node-name='disk0'");
    for bad in ["", "0disk", "di sk", "#block7", "a/b"] {
        assert_eq!(text(bad), format!("Invalid node-name: '{bad}'"));
    }
    assert!(text("a23456789012345678901234567890xyz").contains("longer than 31"));
    bench.device("d0", &disk);
    let root = bench.device("d1", &disk.clone());
    assert_eq!(text("d1"), "node-name=d1 is conflicting with a device id");
    drop(root);
    bench.try_add("d1", NodeOptions::default()).unwrap();
    let unnamed = bench.executor.block_on(bench.graph.add(
        None,
        crate::protocol::null::NullDriver::new(
            bench.executor.clone(),
            512,
            true,
            std::time::Duration::ZERO,
        ),
        NodeOptions::default(),
    ));
    assert!(unnamed.unwrap().name().starts_with("#block"));
}

#[test]
fn a_node_in_use_stays_and_an_unused_one_goes() {
    let bench = Bench::new();
    let disk = bench.disk("t0");
    let root = bench.device("d0", &disk);
    let remove = |name| bench.executor.block_on(bench.graph.remove(name));
    assert_eq!(remove("t0").unwrap_err().to_string(), "Node t0 is in use");
    drop(root);
    drop(disk);
    bench.taken_log();
    remove("t0").unwrap();
    assert_eq!(bench.taken_log(), ["t0.flush", "t0.inactivate"]);
    assert!(bench.graph.nodes().is_empty());
    let text = remove("t0").unwrap_err().to_string();
    assert_eq!(text, "Failed to find node with node-name='t0'");
}

#[test]
fn a_node_that_is_not_owned_goes_with_its_last_parent() {
    let bench = Bench::new();
    let options = NodeOptions { owned: false, ..NodeOptions::default() };
    let disk = bench.try_add("low", options).unwrap();
    let filter = bench.filter("high", &disk);
    drop((disk, filter));
    assert_eq!(bench.graph.nodes().len(), 2);
    let text = bench.executor.block_on(bench.graph.remove("low")).unwrap_err().to_string();
    assert_eq!(text, "Node low is in use");
    bench.executor.block_on(bench.graph.remove("high")).unwrap();
    assert!(bench.graph.nodes().is_empty());
}

#[test]
fn two_writers_are_a_conflict_that_names_both() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let filter = bench.filter("f0", &disk);
    let device = bench.device("d0", &filter);
    let error = bench.root(BackendKind::Job, "job0", &disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionConflict);
    assert_eq!(
        error.to_string(),
        "Permission conflict on node 'n0': permissions 'write' are both required by job 'job0' \
         (uses node 'n0' as 'root' child) and unshared by node 'f0' (uses node 'n0' as 'filtered' \
         child)"
    );
    // The refused root has left nothing: the device goes, and then it may.
    drop(device);
    let job = bench.root(BackendKind::Job, "job0", &disk).unwrap();
    assert!(bench.root(BackendKind::Device, "d0", &filter).is_err());
    assert!(bench.graph.backend("d0").is_none());
    drop(job);
    bench.device("d0", &filter);
}

#[test]
fn permissions_reach_the_bottom_and_a_refusal_there_undoes_all() {
    let bench = Bench::new();
    let disk = bench.disk("low");
    let filter = bench.filter("high", &disk);
    bench.taken_log();
    bench.refuse.borrow_mut().push("low.hold write");
    assert!(bench.root(BackendKind::Device, "d0", &filter).is_err());
    let log = bench.taken_log();
    assert_eq!(log[..2], ["high.hold write", "high.hold"], "taken above, given back");
    assert_eq!((disk.perms(), filter.perms()), (EdgePerms::IDLE, EdgePerms::IDLE));
    bench.refuse.take();
    let root = bench.device("d0", &filter);
    assert_eq!(disk.perms(), EdgePerms::READ_WRITE);
    drop(root);
    assert_eq!(disk.perms(), EdgePerms::IDLE);
    assert_eq!(bench.taken_log().last().unwrap(), "low.hold");
}

#[test]
fn a_read_only_node_takes_no_writer() {
    let bench = Bench::new();
    let options = NodeOptions { read_only: true, ..NodeOptions::default() };
    let disk = bench.try_add("r0", options).unwrap();
    let error = bench.root(BackendKind::Device, "d0", &disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    bench.graph.add_backend(BackendKind::Device, "d0", &disk, EdgePerms::READ).unwrap();
    let write = disk.write(0, IoBuf::alloc(512), WriteFlags::NONE);
    assert_eq!(bench.executor.block_on(write).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn who_did_not_ask_for_it_may_not_write() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let reader = bench.graph.add_backend(BackendKind::Job, "j0", &disk, EdgePerms::READ).unwrap();
    let error = bench.write(&reader).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(!bench.taken_log().contains(&"n0.write".to_owned()));
}

#[test]
fn a_filter_goes_in_and_out_and_roots_can_stay_below() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let device = bench.device("d0", &disk);
    let below = EdgePerms { needs: crate::Perms::CONSISTENT_READ, shares: crate::Perms::ALL };
    let job = bench.graph.add_backend(BackendKind::Job, "j0", &disk, below).unwrap();
    let filter = bench.filter("f0", &disk);
    let edit = Edit::new().replace(&disk, &filter, &[job.id()]);
    bench.executor.block_on(bench.graph.edit(&edit, &[])).unwrap();
    assert_eq!((device.node().name(), job.node().name()), ("f0", "n0"));
    bench.taken_log();
    bench.write(&device).unwrap();
    assert_eq!(bench.taken_log(), ["f0.write", "n0.write"]);
    let edit = Edit::new().replace(&filter, &disk, &[]);
    bench.executor.block_on(bench.graph.edit(&edit, &[])).unwrap();
    assert_eq!(device.node().name(), "n0");
    drop(filter);
    bench.executor.block_on(bench.graph.remove("f0")).unwrap();
    bench.write(&device).unwrap();
}

/// The end of a mirror: the job lets go of the target as the device takes it.
#[test]
fn a_pivot_and_a_change_of_permissions_happen_together() {
    let bench = Bench::new();
    let (source, target) = (bench.disk("s0"), bench.disk("t0"));
    let filter = bench.filter("f0", &source);
    let device = bench.device("d0", &filter);
    let job = bench.root(BackendKind::Job, "j0", &target).unwrap();
    let pivot = Edit::new().replace(&filter, &target, &[job.id()]);
    let error = bench.executor.block_on(bench.graph.edit(&pivot, &[])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionConflict, "the job still writes");
    assert_eq!(device.node().name(), "f0", "nothing has changed");
    assert_eq!(source.perms(), EdgePerms::READ_WRITE);
    bench.write(&device).unwrap();
    let pivot = pivot.set_perms(&job, EdgePerms::IDLE);
    bench.executor.block_on(bench.graph.edit(&pivot, &[])).unwrap();
    assert_eq!(device.node().name(), "t0");
    assert_eq!((source.perms(), target.perms()), (EdgePerms::IDLE, EdgePerms::READ_WRITE));
    assert!(bench.write(&job).is_err());
    bench.taken_log();
    bench.write(&device).unwrap();
    assert_eq!(bench.taken_log(), ["t0.write"]);
}

#[test]
fn an_edit_refused_by_a_driver_changes_nothing() {
    let bench = Bench::new();
    let (source, target) = (bench.disk("s0"), bench.disk("t0"));
    let device = bench.device("d0", &source);
    bench.refuse.borrow_mut().push("t0.hold write");
    let edit = Edit::new().replace(&source, &target, &[]);
    assert!(bench.executor.block_on(bench.graph.edit(&edit, &[])).is_err());
    assert_eq!(device.node().name(), "s0");
    assert_eq!((source.perms(), target.perms()), (EdgePerms::READ_WRITE, EdgePerms::IDLE));
    assert!(target.0.live_parents().is_empty());
    bench.write(&device).unwrap();
}

#[test]
fn a_root_that_is_not_drained_is_not_moved() {
    let bench = Bench::new();
    let (source, other) = (bench.disk("s0"), bench.disk("o0"));
    let device = bench.device("d0", &source);
    let edit = Edit::new().replace(&source, &other, &[]);
    let error = bench.executor.block_on(async {
        let drained = bench.graph.drain(&other, &[]).await;
        bench.graph.apply(&edit, &drained).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(device.node().name(), "s0");
}

#[test]
fn ownership_is_taken_upwards_and_given_up_downwards() {
    let bench = Bench::new();
    let disk = bench.disk("low");
    let filter = bench.filter("high", &disk);
    let device = bench.device("d0", &filter);
    bench.taken_log();
    bench.executor.block_on(bench.graph.inactivate_all()).unwrap();
    let expected = ["high.flush", "high.inactivate", "low.flush", "low.inactivate"];
    assert_eq!(bench.taken_log(), expected);
    assert_eq!(bench.write(&device).unwrap_err().kind(), ErrorKind::Inactive);
    bench.executor.block_on(device.read(0, IoBuf::alloc(512))).unwrap();
    bench.taken_log();
    bench.executor.block_on(bench.graph.activate_all(None)).unwrap();
    assert_eq!(bench.taken_log(), ["low.activate", "high.activate"]);
    bench.write(&device).unwrap();
}

#[test]
fn ownership_half_given_up_is_taken_back() {
    let bench = Bench::new();
    let disk = bench.disk("low");
    let filter = bench.filter("high", &disk);
    let device = bench.device("d0", &filter);
    bench.refuse.borrow_mut().push("low.inactivate");
    assert!(bench.executor.block_on(bench.graph.inactivate_all()).is_err());
    assert!(disk.is_active() && filter.is_active());
    bench.write(&device).unwrap();
    bench.refuse.take();
    bench.executor.block_on(bench.graph.inactivate_all()).unwrap();
    bench.refuse.borrow_mut().push("high.activate");
    assert!(bench.executor.block_on(bench.graph.activate_all(None)).is_err());
    assert!(!disk.is_active() && !filter.is_active());
}

#[test]
fn a_job_that_writes_keeps_ownership_here() {
    let bench = Bench::new();
    let (source, target) = (bench.disk("s0"), bench.disk("t0"));
    let _device = bench.device("d0", &source);
    let job = bench.root(BackendKind::Job, "mirror0", &target).unwrap();
    let error = bench.executor.block_on(bench.graph.inactivate_all()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("job 'mirror0'"), "{error}");
    assert!(source.is_active());
    drop(job);
    bench.executor.block_on(bench.graph.inactivate_all()).unwrap();
}

#[test]
fn where_no_mark_is_kept_nobody_goes_on_by_a_mark() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let _device = bench.device("d0", &disk);
    let marks = bench.executor.block_on(bench.graph.generations()).unwrap();
    assert_eq!(marks.unmarked(), ["n0"]);
    bench.executor.block_on(bench.graph.inactivate_all()).unwrap();
    let error = bench.executor.block_on(bench.graph.activate_all(Some(&marks))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OwnershipUnknown);
    assert!(error.to_string().contains("'n0'"), "{error}");
}

#[test]
fn an_extension_is_made_once() {
    let bench = Bench::new();
    let first = bench.graph.extension(|| Cell::new(1));
    first.set(5);
    assert_eq!(bench.graph.extension(|| Cell::new(2)).get(), 5);
}
