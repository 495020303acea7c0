//! Throttle groups: members that share one set of limits, served in turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;

use super::bucket::{Bucket, UNIT};
use super::limits::ThrottleLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::notify::Notify;

/// Which way a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    Read,
    /// To the disk; zeroes and discards too.
    Write,
}

/// The groups of a graph.
#[derive(Default)]
struct Groups {
    all: RefCell<Vec<Weak<GroupInner>>>,
    /// Those that a user made: they live until he deletes them.
    owned: RefCell<Vec<ThrottleGroup>>,
}

/// Limits that several disks share. Clones are the same group.
#[derive(Clone)]
pub struct ThrottleGroup(Rc<GroupInner>);

struct GroupInner {
    name: String,
    executor: Executor,
    drain_began: Rc<Notify>,
    meter: RefCell<Meter>,
    /// Reads that wait, and writes.
    waiting: [Waiting; 2],
    /// Counts what those who wait must look at: new limits, and requests given up.
    changes: Cell<u64>,
    changed: Notify,
}

/// What flowed so far.
struct Meter {
    limits: ThrottleLimits,
    buckets: [Bucket; 6],
    leaked_at: u64,
}

/// The members that wait in one direction; the first is served next.
#[derive(Default)]
struct Waiting {
    members: RefCell<VecDeque<Rc<MemberInner>>>,
    /// A task serves them.
    served: Cell<bool>,
}

/// A disk in a group.
pub struct ThrottleMember {
    group: ThrottleGroup,
    inner: Rc<MemberInner>,
}

struct MemberInner {
    /// Whether its requests must not be held up, as somebody waits for them to end.
    hurried: Box<dyn Fn() -> bool>,
    left: Cell<bool>,
    requests: [RefCell<VecDeque<Weak<Request>>>; 2],
}

/// A request that waits.
struct Request {
    bytes: u64,
    admitted: Cell<bool>,
    news: Notify,
}

impl Groups {
    fn of(graph: &BlockGraph) -> Rc<Groups> {
        graph.extension(Groups::default)
    }
}

impl ThrottleGroup {
    /// Makes a group that lives until [`delete`](ThrottleGroup::delete): what `object-add` does.
    pub fn create(graph: &BlockGraph, name: &str, limits: ThrottleLimits) -> Result<ThrottleGroup> {
        limits.check()?;
        if ThrottleGroup::find(graph, name).is_some() {
            let context = format!("A throttle group named '{name}' exists already");
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        let group = ThrottleGroup::find_or_make(graph, name);
        group.set_limits(limits)?;
        Groups::of(graph).owned.borrow_mut().push(group.clone());
        Ok(group)
    }

    /// The group of that name.
    pub fn find(graph: &BlockGraph, name: &str) -> Option<ThrottleGroup> {
        let groups = Groups::of(graph);
        let mut all = groups.all.borrow_mut();
        all.retain(|group| group.strong_count() != 0);
        all.iter().filter_map(Weak::upgrade).map(ThrottleGroup).find(|it| it.name() == name)
    }

    /// The names of the groups that users made.
    pub fn ids(graph: &BlockGraph) -> Vec<String> {
        Groups::of(graph).owned.borrow().iter().map(|group| group.name().to_owned()).collect()
    }

    /// The group of that name, made without limits if there is none; it lives as long as its
    /// members.
    pub fn find_or_make(graph: &BlockGraph, name: &str) -> ThrottleGroup {
        ThrottleGroup::find(graph, name).unwrap_or_else(|| {
            let limits = ThrottleLimits::default();
            let executor = graph.executor().clone();
            let group = ThrottleGroup(Rc::new(GroupInner {
                name: name.to_owned(),
                meter: RefCell::new(Meter::new(limits, executor.clock().now())),
                executor,
                drain_began: graph.drain_began(),
                waiting: Default::default(),
                changes: Cell::new(0),
                changed: Notify::new(),
            }));
            Groups::of(graph).all.borrow_mut().push(Rc::downgrade(&group.0));
            group
        })
    }

    /// Deletes a group that a user made and no disk is in: what `object-del` does.
    pub fn delete(graph: &BlockGraph, name: &str) -> Result<()> {
        let groups = Groups::of(graph);
        let mut owned = groups.owned.borrow_mut();
        let Some(place) = owned.iter().position(|group| group.name() == name) else {
            return Err(Error::new(ErrorKind::NotFound, format!("object '{name}' not found")));
        };
        if Rc::strong_count(&owned[place].0) > 1 {
            let context = format!("object '{name}' is in use, can not be deleted");
            return Err(Error::new(ErrorKind::Busy, context));
        }
        owned.remove(place);
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The limits that hold now.
    pub fn limits(&self) -> ThrottleLimits {
        self.0.meter.borrow().limits
    }

    /// Sets new limits, for requests that wait too. What flowed before is forgotten.
    pub fn set_limits(&self, limits: ThrottleLimits) -> Result<()> {
        limits.check()?;
        self.0.meter.replace(Meter::new(limits, self.0.executor.clock().now()));
        self.0.change();
        Ok(())
    }

    /// Puts a disk into the group. While `hurried` says so its requests do not wait.
    pub fn join(&self, hurried: impl Fn() -> bool + 'static) -> ThrottleMember {
        let inner = MemberInner {
            hurried: Box::new(hurried),
            left: Cell::new(false),
            requests: Default::default(),
        };
        ThrottleMember { group: self.clone(), inner: Rc::new(inner) }
    }
}

impl ThrottleMember {
    /// The group it is in.
    pub fn group(&self) -> &ThrottleGroup {
        &self.group
    }

    /// Lets everything go that waits; from now on nothing does.
    pub fn leave(&self) {
        self.inner.left.set(true);
        self.group.0.change();
    }

    /// Waits until a request of so many bytes may start, and counts it.
    pub async fn admit(&self, direction: Direction, bytes: u64) {
        let group = &self.group.0;
        let waiting = group.waiting(direction);
        let free = waiting.members.borrow().is_empty()
            && group.meter.borrow_mut().wait(direction, group.now()) == 0;
        if free || self.inner.is_hurried() {
            group.meter.borrow_mut().count(direction, bytes);
            return;
        }
        let request = Rc::new(Request { bytes, admitted: Cell::new(false), news: Notify::new() });
        self.inner.requests[direction as usize].borrow_mut().push_back(Rc::downgrade(&request));
        let queued = waiting.members.borrow().iter().any(|it| Rc::ptr_eq(it, &self.inner));
        if !queued {
            waiting.members.borrow_mut().push_back(Rc::clone(&self.inner));
        }
        if !waiting.served.replace(true) {
            let group = Rc::clone(group);
            let executor = group.executor.clone();
            drop(executor.spawn(async move { group.serve(direction).await }));
        }
        let given_up = GivenUp { group, request: &request };
        request.news.wait_until(|| request.admitted.get()).await;
        drop(given_up);
    }
}

/// Tells the task that serves when a request that it may be sleeping for goes away.
struct GivenUp<'a> {
    group: &'a GroupInner,
    request: &'a Request,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if !self.request.admitted.get() {
            self.group.change();
        }
    }
}

impl GroupInner {
    fn waiting(&self, direction: Direction) -> &Waiting {
        &self.waiting[direction as usize]
    }

    fn now(&self) -> u64 {
        self.executor.clock().now()
    }

    fn change(&self) {
        self.changes.set(self.changes.get().wrapping_add(1));
        self.changed.notify_all();
    }

    /// Admits what waits in one direction, as fast as the limits allow, until nothing does.
    async fn serve(&self, direction: Direction) {
        let waiting = self.waiting(direction);
        loop {
            self.admit_hurried(direction);
            if waiting.members.borrow().is_empty() {
                waiting.served.set(false);
                return;
            }
            let now = self.now();
            let wait = self.meter.borrow_mut().wait(direction, now);
            if wait == 0 {
                self.admit_next(direction);
            } else {
                self.sleep(direction, now.saturating_add(wait)).await;
            }
        }
    }

    /// Sleeps until then, or until limits, requests or drains are other than they were.
    async fn sleep(&self, direction: Direction, until: u64) {
        let seen = self.changes.get();
        let mut timer = pin!(self.executor.sleep_until(until));
        let mut changed = pin!(self.changed.wait_until(|| self.changes.get() != seen));
        let mut hurried = pin!(self.drain_began.wait_until(|| {
            self.waiting(direction).members.borrow().iter().any(|member| member.is_hurried())
        }));
        poll_fn(|cx| {
            let ready = timer.as_mut().poll(cx).is_ready()
                || changed.as_mut().poll(cx).is_ready()
                || hurried.as_mut().poll(cx).is_ready();
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Admits one request of the member whose turn it is, and moves that member to the end.
    fn admit_next(&self, direction: Direction) {
        let waiting = self.waiting(direction);
        let Some(member) = waiting.members.borrow_mut().pop_front() else { return };
        if self.admit_one(&member, direction) {
            waiting.members.borrow_mut().push_back(member);
        }
    }

    /// Admits everything of members that must not be held up.
    fn admit_hurried(&self, direction: Direction) {
        let members = std::mem::take(&mut *self.waiting(direction).members.borrow_mut());
        for member in members {
            if member.is_hurried() {
                while self.admit_one(&member, direction) {}
            } else if member.drop_given_up(direction) {
                self.waiting(direction).members.borrow_mut().push_back(member);
            }
        }
    }

    /// Admits the first request of `member`; whether it has more.
    fn admit_one(&self, member: &MemberInner, direction: Direction) -> bool {
        let mut requests = member.requests[direction as usize].borrow_mut();
        while let Some(request) = requests.pop_front() {
            if let Some(request) = request.upgrade() {
                self.meter.borrow_mut().count(direction, request.bytes);
                request.admitted.set(true);
                request.news.notify_all();
                break;
            }
        }
        !requests.is_empty()
    }
}

impl MemberInner {
    fn is_hurried(&self) -> bool {
        self.left.get() || (self.hurried)()
    }

    /// Forgets requests whose futures were dropped; whether any is left.
    fn drop_given_up(&self, direction: Direction) -> bool {
        let mut requests = self.requests[direction as usize].borrow_mut();
        requests.retain(|request| request.strong_count() != 0);
        !requests.is_empty()
    }
}

impl Meter {
    fn new(limits: ThrottleLimits, now: u64) -> Meter {
        Meter { limits, buckets: limits.rates().map(Bucket::new), leaked_at: now }
    }

    /// Nanoseconds until the next request in this direction may start.
    fn wait(&mut self, direction: Direction, now: u64) -> u64 {
        let passed = now.saturating_sub(self.leaked_at);
        self.leaked_at = now.max(self.leaked_at);
        for bucket in &mut self.buckets {
            bucket.leak(passed);
        }
        places(direction).into_iter().map(|place| self.buckets[place].wait()).max().unwrap_or(0)
    }

    /// A request starts.
    fn count(&mut self, direction: Direction, bytes: u64) {
        let size = self.limits.iops_size;
        let requests = match size {
            0 => UNIT,
            size => (u128::from(bytes) * UNIT / u128::from(size)).max(UNIT),
        };
        let [total, own, total_requests, own_requests] = places(direction);
        for place in [total, own] {
            self.buckets[place].pour(u128::from(bytes) * UNIT);
        }
        for place in [total_requests, own_requests] {
            self.buckets[place].pour(requests);
        }
    }
}

/// The buckets that a direction uses, in the order of [`ThrottleLimits::rates`].
fn places(direction: Direction) -> [usize; 4] {
    match direction {
        Direction::Read => [0, 1, 3, 4],
        Direction::Write => [0, 2, 3, 5],
    }
}
