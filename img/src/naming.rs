//! What subcommands take to open images, and the one way from there to a request.

use clap::Args;
use serde_json::{Map, Value};

use crate::keyval;
use crate::object::Objects;
use crate::session::{Access, Request};

/// How an image is named.
#[derive(Debug, Args)]
pub(crate) struct Naming {
    #[command(flatten)]
    pub(crate) objects: Objects,
    /// Format of the image; it is found out if it is not given
    #[arg(short, conflicts_with = "image_opts")]
    format: Option<String>,
    /// The image is named by options, as key=value,...
    #[arg(long)]
    image_opts: bool,
}

impl Naming {
    /// The format that the user gave.
    pub(crate) fn format(&self) -> Option<&str> {
        self.format.as_deref()
    }

    /// What the user named, for that use of it.
    pub(crate) fn request<'a>(&'a self, name: &'a str, access: Access) -> Request<'a> {
        let (format, image_opts) = (self.format.as_deref(), self.image_opts);
        Request { image_opts, access, ..Request::read(name, format) }
    }
}

/// [`Naming`] of an image that need not be changed.
#[derive(Debug, Args)]
pub(crate) struct Reading {
    #[command(flatten)]
    naming: Naming,
    /// Also while another program writes to the image
    #[arg(short = 'U', long)]
    force_share: bool,
}

impl Reading {
    /// The objects that options refer to.
    pub(crate) fn objects(&self) -> &Objects {
        &self.naming.objects
    }

    /// What the user named, to be read, or for what else is done to it.
    pub(crate) fn request<'a>(&'a self, name: &'a str, writes: Option<Access>) -> Request<'a> {
        let read = if self.force_share { Access::Share } else { Access::Read };
        self.naming.request(name, writes.unwrap_or(read))
    }
}

/// [`Reading`] of an image, or of a snapshot in it.
#[derive(Debug, Args)]
pub(crate) struct Copying {
    #[command(flatten)]
    image: Reading,
    /// Read this internal snapshot: an id or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', value_name = "SNAPSHOT", value_parser = snapshot)]
    snapshot: Option<Value>,
}

impl Copying {
    /// The objects that options refer to.
    pub(crate) fn objects(&self) -> &Objects {
        self.image.objects()
    }

    /// Whether something was said that only makes sense of an image.
    pub(crate) fn describes_source(&self) -> bool {
        let Naming { format, image_opts, .. } = &self.image.naming;
        self.has_snapshot() || *image_opts || format.is_some()
    }

    /// Whether it is a snapshot that is read.
    pub(crate) fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// What the user named, to be read.
    pub(crate) fn request<'a>(&'a self, name: &'a str) -> Request<'a> {
        Request { snapshot: self.snapshot.as_ref(), ..self.image.request(name, None) }
    }
}

/// A snapshot as the option of the qcow2 driver that chooses it.
fn snapshot(text: &str) -> Result<Value, String> {
    if !text.starts_with("snapshot.") {
        return Ok(text.into());
    }
    let mut members = Map::new();
    for (key, value) in keyval::pairs(text) {
        match key.strip_prefix("snapshot.") {
            Some(key @ ("id" | "name")) => members.insert(key.to_owned(), value.into()),
            _ => return Err(format!("Invalid parameter '{key}'")),
        };
    }
    Ok(Value::Object(members))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn snapshots_are_named_in_both_ways() {
        assert_eq!(snapshot("a=b,c").unwrap(), json!("a=b,c"));
        let both = snapshot("snapshot.id=1,snapshot.name=x").unwrap();
        assert_eq!(both, json!({"id": "1", "name": "x"}));
        assert!(snapshot("snapshot.id=1,name=x").is_err() && snapshot("snapshot.x=1").is_err());
    }
}
