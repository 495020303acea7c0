//! Objects whose properties are kept for `qom-get`: secrets, and I/O threads, for all disks share one thread.
//! Scripts that make them go on working.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ferry_api::QmpError;
use ferry_api::command::{IoThreadInfo, IothreadProperties, QCryptoSecretFormat, SecretProperties};
use ferry_block::{BlockGraph, Executor};
use serde_json::{Map, Value};

use super::Result;

/// The type of I/O threads.
const IOTHREAD: &str = "iothread";

/// A kept object.
pub(super) struct Kept {
    kind: &'static str,
    properties: Map<String, Value>,
    /// How long the thread of all disks shall poll at most, ns.
    polling: Option<u64>,
}

/// Those of one graph, by id.
#[derive(Default)]
struct Objects(RefCell<BTreeMap<String, Kept>>);

/// How long the one thread of all disks polls: as long as the last object that asks for something says.
struct Polling {
    executor: Executor,
    /// Without such an object, ns.
    otherwise: u64,
    /// Who asks for what, ns, in the order in which they came.
    asked: RefCell<Vec<(String, u64)>>,
}

impl Polling {
    fn of(graph: &BlockGraph) -> Rc<Polling> {
        graph.extension(|| {
            let executor = graph.executor().clone();
            let otherwise = executor.poll_max_ns();
            Polling { executor, otherwise, asked: RefCell::default() }
        })
    }

    fn add(&self, id: &str, limit: u64) {
        self.asked.borrow_mut().push((id.to_owned(), limit));
        self.executor.set_poll_max_ns(limit);
    }

    fn remove(&self, id: &str) {
        let mut asked = self.asked.borrow_mut();
        asked.retain(|(other, _)| other != id);
        self.executor.set_poll_max_ns(asked.last().map_or(self.otherwise, |(_, limit)| *limit));
    }
}

/// An I/O thread with these properties, the others as QEMU's.
pub(super) fn iothread(asked: &IothreadProperties) -> Result<Kept> {
    let values = [
        ("poll-max-ns", asked.poll_max_ns, 32768),
        ("poll-grow", asked.poll_grow, 0),
        ("poll-shrink", asked.poll_shrink, 0),
        ("aio-max-batch", asked.aio_max_batch, 0),
        ("thread-pool-min", asked.thread_pool_min, 0),
        ("thread-pool-max", asked.thread_pool_max, 64),
    ];
    let mut properties = Map::new();
    for (name, value, otherwise) in values {
        let value = value.unwrap_or(otherwise);
        if value < 0 {
            let most = i64::MAX;
            return Err(QmpError::generic(format!("{name} value must be in range [0, {most}]")));
        }
        properties.insert(name.to_owned(), value.into());
    }
    let polling = asked.poll_max_ns.and_then(|limit| u64::try_from(limit).ok());
    Ok(Kept { kind: IOTHREAD, properties, polling })
}

/// What is told of the I/O threads, whose work is done by the thread with that number.
pub(super) fn iothreads(graph: &BlockGraph, thread_id: i64) -> Vec<IoThreadInfo> {
    let objects = graph.extension(Objects::default);
    let objects = objects.0.borrow();
    let threads = objects.iter().filter(|(_, object)| object.kind == IOTHREAD);
    let info = |(id, object): (&String, &Kept)| {
        let number = |name| object.properties.get(name).and_then(Value::as_i64).unwrap_or(0);
        IoThreadInfo {
            id: id.clone(),
            thread_id,
            poll_max_ns: number("poll-max-ns"),
            poll_grow: number("poll-grow"),
            poll_shrink: number("poll-shrink"),
            aio_max_batch: number("aio-max-batch"),
        }
    };
    threads.map(info).collect()
}

/// The properties of a secret.
pub(super) fn secret(asked: SecretProperties) -> Kept {
    let format = asked.format.unwrap_or(QCryptoSecretFormat::Raw).as_str().to_owned();
    let values = [
        ("data", asked.data),
        ("file", asked.file),
        ("format", Some(format)),
        ("keyid", asked.keyid),
        ("iv", asked.iv),
    ];
    let given =
        values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
    Kept { kind: "secret", properties: given.collect(), polling: None }
}

/// Keeps an object whose id nobody has.
pub(super) fn add(graph: &BlockGraph, id: String, object: Kept) {
    if let Some(limit) = object.polling {
        Polling::of(graph).add(&id, limit);
    }
    graph.extension(Objects::default).0.borrow_mut().insert(id, object);
}

/// Takes an object away; whether there was one.
pub(super) fn remove(graph: &BlockGraph, id: &str) -> bool {
    let removed = graph.extension(Objects::default).0.borrow_mut().remove(id);
    if removed.as_ref().is_some_and(|object| object.polling.is_some()) {
        Polling::of(graph).remove(id);
    }
    removed.is_some()
}

/// The value of a property.
pub(super) fn property(graph: &BlockGraph, id: &str, name: &str) -> Option<Value> {
    let objects = graph.extension(Objects::default);
    let objects = objects.0.borrow();
    objects.get(id)?.properties.get(name).cloned()
}

/// Ids and kinds.
pub(super) fn list(graph: &BlockGraph) -> Vec<(String, String)> {
    let objects = graph.extension(Objects::default);
    let objects = objects.0.borrow();
    objects.iter().map(|(id, object)| (id.clone(), object.kind.to_owned())).collect()
}
