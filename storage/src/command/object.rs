//! Objects beside the nodes.

use ferry_api::QmpError;
use ferry_api::command::{
    AnyValue, IoThreadInfo, ObjectDel, ObjectKind, ObjectOptions, ObjectPropertyInfo, QomGet,
    QomList, QomSet, ThrottleLimits, reply,
};
use ferry_block::filter::throttle::{self, ThrottleGroup};
use ferry_block::net::{TlsCreds, TlsCredsOptions, TlsEndpoint, no_psk};
use ferry_block::{BlockGraph, Error, ErrorKind, Secret, SecretOptions};

use serde::Serialize;
use serde_json::Value;

use super::kept;
use super::{Result, Storage, carry_over};

const THROTTLE_GROUP: &str = "throttle-group";

impl Storage {
    /// `object-add`
    pub(crate) async fn object_add(&self, arguments: ObjectOptions) -> Result<()> {
        let ObjectOptions { id, kind } = arguments;
        if !is_well_formed(&id) {
            let text = "Parameter 'id' expects an identifier";
            return Err(QmpError::generic(text));
        }
        match kind {
            ObjectKind::Iothread(thread) => {
                let object = kept::iothread(&thread)?;
                let add = move |graph: BlockGraph| async move {
                    check_unused(&graph, &id)?;
                    kept::add(&graph, id, object);
                    Ok(())
                };
                self.on_graph(add).await
            }
            ObjectKind::Secret(properties) => {
                let options: SecretOptions = carry_over(&properties)?;
                let add = move |graph: BlockGraph| async move {
                    check_unused(&graph, &id)?;
                    let secret = Secret::load(&graph, &options).await?;
                    check_unused(&graph, &id)?;
                    secret.register(&graph, &id);
                    kept::add(&graph, id, kept::secret(properties));
                    Ok(())
                };
                self.on_graph(add).await
            }
            ObjectKind::ThrottleGroup(group) => {
                let limits = throttle_limits(&group.limits.unwrap_or_default())?;
                let add = move |graph: BlockGraph| async move {
                    check_unused(&graph, &id)?;
                    ThrottleGroup::create(&graph, &id, limits).map(drop)
                };
                self.on_graph(add).await
            }
            ObjectKind::TlsCredsPsk(_) => Err(QmpError::generic(no_psk().to_string())),
            ObjectKind::TlsCredsX509(creds) => {
                let options: TlsCredsOptions = carry_over(&creds)?;
                let add = move |graph: BlockGraph| async move {
                    check_unused(&graph, &id)?;
                    let creds = TlsCreds::load(graph.executor(), &options).await?;
                    check_unused(&graph, &id)?;
                    creds.register(&graph, &id)
                };
                self.on_graph(add).await
            }
        }
    }

    /// `query-iothreads`
    pub(super) async fn query_iothreads(&self) -> Result<Vec<IoThreadInfo>> {
        self.on_graph(|graph| async move { Ok(kept::iothreads(&graph, thread_id())) }).await
    }

    /// `qom-list` of all objects.
    pub(super) async fn qom_list(&self, arguments: QomList) -> Result<Vec<ObjectPropertyInfo>> {
        let QomList { path } = arguments;
        if path != "/objects" {
            return Err(QmpError::device_not_found(&path));
        }
        let list = |graph: BlockGraph| async move {
            let child = |(id, kind)| (id, format!("child<{kind}>"));
            let own = ("type".to_owned(), "string".to_owned());
            Ok(std::iter::once(own)
                .chain(objects(&graph).into_iter().map(child))
                .collect::<Vec<_>>())
        };
        let info = |(name, kind)| ObjectPropertyInfo {
            name,
            kind,
            description: None,
            default_value: None,
        };
        Ok(self.on_graph(list).await?.into_iter().map(info).collect())
    }

    /// `object-del`
    pub(super) async fn object_del(&self, arguments: ObjectDel) -> Result<()> {
        let id = arguments.id;
        let remove = move |graph: BlockGraph| async move {
            Secret::unregister(&graph, &id);
            if TlsCreds::unregister(&graph, &id) || kept::remove(&graph, &id) {
                return Ok(());
            }
            if ThrottleGroup::find(&graph, &id).is_some() {
                return ThrottleGroup::delete(&graph, &id);
            }
            Err(Error::new(ErrorKind::NotFound, format!("object '{id}' not found")))
        };
        self.on_graph(remove).await
    }

    /// `qom-get` of a throttle group's limits, or of what is kept.
    pub(super) async fn qom_get(&self, arguments: QomGet) -> Result<AnyValue> {
        let QomGet { path, property } = arguments;
        self.check_property(&path, &property).await?;
        let (id, name) = (object_id(&path).to_owned(), property);
        let look = |graph: BlockGraph| async move { Ok(kept::property(&graph, &id, &name)) };
        if let Some(value) = self.on_graph(look).await? {
            return Ok(AnyValue(value));
        }
        let read = move |graph: BlockGraph| async move {
            throttle_group(&graph, &path).map(|group| group.limits())
        };
        let limits: ThrottleLimits = carry_over(&self.on_graph(read).await?)?;
        reply(&limits).map(AnyValue)
    }

    /// `qom-set` of a throttle group's limits: it takes effect at once.
    pub(super) async fn qom_set(&self, arguments: QomSet) -> Result<()> {
        let QomSet { path, property, value: AnyValue(value) } = arguments;
        self.check_property(&path, &property).await?;
        let asked: ThrottleLimits = serde_json::from_value(value)
            .map_err(|error| QmpError::generic(format!("Invalid limits: {error}")))?;
        let group = path.clone();
        let read = move |graph: BlockGraph| async move {
            throttle_group(&graph, &group).map(|group| group.limits())
        };
        // What is not said stays as it is.
        let mut limits = json(&self.on_graph(read).await?)?;
        if let (Value::Object(limits), Value::Object(asked)) = (&mut limits, json(&asked)?) {
            limits.extend(asked);
        }
        let limits: throttle::ThrottleLimits = carry_over(&limits)?;
        let change = move |graph: BlockGraph| async move {
            throttle_group(&graph, &path)?.set_limits(limits)
        };
        self.on_graph(change).await
    }

    /// Refuses a property that the object does not have, or an object that is not there.
    async fn check_property(&self, path: &str, property: &str) -> Result<()> {
        let (id, name) = (object_id(path).to_owned(), property.to_owned());
        let look = |graph: BlockGraph| async move {
            let kind = objects(&graph).into_iter().find(|(other, _)| *other == id);
            let has = kept::property(&graph, &id, &name).is_some();
            Ok(kind.map(|(_, kind)| (kind, has)))
        };
        match self.on_graph(look).await? {
            None => Err(QmpError::device_not_found(path)),
            Some((_, true)) => Ok(()),
            // The limits are all that a group has.
            Some((kind, false)) if kind == THROTTLE_GROUP && property == "limits" => Ok(()),
            Some((kind, false)) => {
                Err(QmpError::generic(format!("Property '{kind}.{property}' not found")))
            }
        }
    }
}

/// The number of this thread on the host; 0 if it cannot be told.
fn thread_id() -> i64 {
    let link = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    let name = link.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.parse().ok()).unwrap_or(0)
}

fn json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| QmpError::generic(error.to_string()))
}

/// All objects: their ids and kinds.
fn objects(graph: &BlockGraph) -> Vec<(String, String)> {
    let typed = |ids: Vec<String>, kind: &str| {
        ids.into_iter().map(|id| (id, kind.to_owned())).collect::<Vec<_>>()
    };
    let groups = typed(ThrottleGroup::ids(graph), THROTTLE_GROUP);
    let creds = typed(TlsCreds::ids(graph), "tls-creds-x509");
    [groups, creds, kept::list(graph)].concat()
}

fn object_id(path: &str) -> &str {
    path.strip_prefix("/objects/").unwrap_or(path)
}

fn throttle_group(graph: &BlockGraph, path: &str) -> ferry_block::Result<ThrottleGroup> {
    ThrottleGroup::find(graph, object_id(path)).ok_or_else(|| {
        let context = format!("Device '{path}' not found");
        Error::new(ErrorKind::NotFound, context)
    })
}

fn throttle_limits(from: &ThrottleLimits) -> Result<throttle::ThrottleLimits> {
    let limits: throttle::ThrottleLimits = carry_over(from)?;
    limits.check().map_err(super::qmp_error)?;
    Ok(limits)
}

/// Ids are unique among all objects.
fn check_unused(graph: &BlockGraph, id: &str) -> ferry_block::Result<()> {
    let sides = [TlsEndpoint::Client, TlsEndpoint::Server];
    let is_creds = sides.iter().any(|side| TlsCreds::find(graph, id, *side).is_ok());
    let is_kept = kept::list(graph).iter().any(|(other, _)| other == id);
    if is_creds || is_kept || ThrottleGroup::find(graph, id).is_some() {
        let context =
            format!("attempt to add duplicate property '{id}' to object (type 'container')");
        return Err(Error::new(ErrorKind::AlreadyExists, context));
    }
    Ok(())
}

/// Whether it may be the id of something.
pub(super) fn is_well_formed(id: &str) -> bool {
    id.starts_with(|first: char| first.is_ascii_alphabetic())
        && id.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char))
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
