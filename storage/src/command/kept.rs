//! Objects that are only kept: secrets, which no driver here takes, and I/O threads, for all disks share one
//! thread. Scripts that make them go on working.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ferry_api::QmpError;
use ferry_api::command::{IothreadProperties, QCryptoSecretFormat, SecretProperties};
use ferry_block::BlockGraph;
use serde_json::{Map, Value};

use super::Result;

/// A kept object.
pub(super) struct Kept {
    kind: &'static str,
    properties: Map<String, Value>,
}

/// Those of one graph, by id.
#[derive(Default)]
struct Objects(RefCell<BTreeMap<String, Kept>>);

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
    Ok(Kept { kind: "iothread", properties })
}

/// A secret, refused in QEMU's words if it makes no sense.
pub(super) fn secret(asked: &SecretProperties) -> Result<Kept> {
    let refuse = |text: &str| Err(QmpError::generic(text));
    if asked.keyid.is_some() || asked.iv.is_some() {
        return refuse("Secrets that are encrypted with 'keyid' are not supported");
    }
    let (name, value) = match (&asked.data, &asked.file) {
        (Some(_), Some(_)) => return refuse("'file' and 'data' are mutually exclusive"),
        (None, None) => return refuse("Either 'file' or 'data' must be provided"),
        (Some(data), None) => ("data", data),
        (None, Some(file)) => ("file", file),
    };
    let format = asked.format.unwrap_or(QCryptoSecretFormat::Raw);
    let is_coded = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=\n".contains(&byte);
    if format == QCryptoSecretFormat::Base64 && name == "data" && !value.bytes().all(is_coded) {
        return refuse("Base64 data contains invalid characters");
    }
    if let Some(file) = &asked.file {
        let failed = |error| QmpError::generic(format!("Unable to read {file}: {error}"));
        std::fs::File::open(file).map_err(failed)?;
    }
    let mut properties = Map::new();
    properties.insert(name.to_owned(), value.clone().into());
    properties.insert("format".to_owned(), format.as_str().into());
    Ok(Kept { kind: "secret", properties })
}

/// Keeps an object whose id nobody has.
pub(super) fn add(graph: &BlockGraph, id: String, object: Kept) {
    graph.extension(Objects::default).0.borrow_mut().insert(id, object);
}

/// Takes an object away; whether there was one.
pub(super) fn remove(graph: &BlockGraph, id: &str) -> bool {
    graph.extension(Objects::default).0.borrow_mut().remove(id).is_some()
}

/// The value of a property.
pub(super) fn property(graph: &BlockGraph, id: &str, name: &str) -> Option<Value> {
    let objects = graph.extension(Objects::default);
    let objects = objects.0.borrow();
    objects.get(id)?.properties.get(name).cloned()
}

/// Ids and types.
pub(super) fn list(graph: &BlockGraph) -> Vec<(String, String)> {
    let objects = graph.extension(Objects::default);
    let objects = objects.0.borrow();
    objects.iter().map(|(id, object)| (id.clone(), format!("child<{}>", object.kind))).collect()
}
