//! `--object`: what options of images refer to by id.

use clap::Args;
use ferry_block::Secret;
use ferry_block::filter::throttle::{ThrottleGroup, ThrottleLimits};
use ferry_block::net::{TlsCreds, no_psk};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::keyval;
use crate::session::Session;

/// Objects that options refer to by id.
#[derive(Debug, Default, Args)]
pub(crate) struct Objects {
    /// TLS credentials (tls-creds-x509,id=ID,dir=FOLDER), a secret (secret,id=ID,file=PATH) or limits
    /// (throttle-group,id=ID,limits.bps-total=BYTES)
    #[arg(long = "object", value_name = "TYPE,KEY=VALUE...")]
    objects: Vec<String>,
}

impl Objects {
    /// Makes them known to the images of a session.
    pub(crate) async fn load(&self, session: &Session) -> Result<()> {
        for text in &self.objects {
            // Its other properties may be secret.
            let kind = text.split(',').next().unwrap_or_default();
            let named = |failure: Failure| failure.context(format!("--object {kind}"));
            load(session, text).await.map_err(named)?;
        }
        Ok(())
    }
}

async fn load(session: &Session, text: &str) -> Result<()> {
    let (kind, rest) = text.split_once(',').unwrap_or((text, ""));
    match kind.trim_start_matches("qom-type=") {
        "tls-creds-x509" => credentials(session, rest).await,
        "tls-creds-psk" => Err(no_psk().into()),
        "secret" => secret(session, rest).await,
        "throttle-group" => throttle_group(session, rest),
        _ => Err(Failure::new(format!("invalid object type: {kind}"))),
    }
}

async fn credentials(session: &Session, text: &str) -> Result<()> {
    let Value::Object(mut options) = keyval::object(text)? else {
        return Err(Failure::new("no options"));
    };
    let id = take_id(&mut options)?;
    let options = from_members(options)?;
    let creds = TlsCreds::load(session.graph.executor(), &options).await?;
    Ok(creds.register(&session.graph, &id)?)
}

async fn secret(session: &Session, text: &str) -> Result<()> {
    let pairs = keyval::pairs(text).into_iter();
    let mut options: Map<String, Value> = pairs.map(|(key, text)| (key, text.into())).collect();
    let id = take_id(&mut options)?;
    let options = from_members(options)?;
    Secret::load(&session.graph, &options).await?.register(&session.graph, &id);
    Ok(())
}

/// What a throttle group may be told.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GroupOptions {
    limits: ThrottleLimits,
}

fn throttle_group(session: &Session, text: &str) -> Result<()> {
    let Value::Object(mut options) = keyval::object(text)? else {
        return Err(Failure::new("no options"));
    };
    let id = take_id(&mut options)?;
    let options: GroupOptions = from_members(options)?;
    ThrottleGroup::create(&session.graph, &id, options.limits)?;
    Ok(())
}

/// The id that options refer to.
fn take_id(options: &mut Map<String, Value>) -> Result<String> {
    let id = options.remove("id");
    let id = id.as_ref().and_then(Value::as_str);
    id.map(str::to_owned).ok_or_else(|| Failure::new("Parameter 'id' is missing"))
}

fn from_members<T: DeserializeOwned>(options: Map<String, Value>) -> Result<T> {
    serde_json::from_value(Value::Object(options)).map_err(|error| Failure::new(error.to_string()))
}
