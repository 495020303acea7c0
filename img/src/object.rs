//! `--object`: what options of images refer to by id.

use std::collections::BTreeMap;

use clap::Args;
use ferry_block::net::{TlsCreds, no_psk};
use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::keyval;
use crate::session::Session;

/// The members of a secret.
const SECRET: [&str; 4] = ["id", "data", "file", "format"];

/// Objects that options refer to by id.
#[derive(Debug, Default, Args)]
pub(crate) struct Objects {
    /// TLS credentials (tls-creds-x509,id=ID,dir=FOLDER) or a secret (secret,id=ID,file=PATH)
    #[arg(long = "object", value_name = "TYPE,KEY=VALUE...")]
    objects: Vec<String>,
}

impl Objects {
    /// Makes them known to the images of a session.
    pub(crate) async fn load(&self, session: &Session) -> Result<()> {
        for text in &self.objects {
            load(session, text).await.map_err(|failure| failure.context(text))?;
        }
        Ok(())
    }
}

async fn load(session: &Session, text: &str) -> Result<()> {
    let (kind, rest) = text.split_once(',').unwrap_or((text, ""));
    match kind.trim_start_matches("qom-type=") {
        "tls-creds-x509" => credentials(session, rest).await,
        "tls-creds-psk" => Err(no_psk().into()),
        "secret" => check_secret(rest),
        _ => Err(Failure::new(format!("invalid object type: {kind}"))),
    }
}

async fn credentials(session: &Session, text: &str) -> Result<()> {
    let Value::Object(mut options) = keyval::object(text)? else {
        return Err(Failure::new("no options"));
    };
    let id = options.remove("id");
    let id = id.as_ref().and_then(Value::as_str);
    let id = id.ok_or_else(|| Failure::new("Parameter 'id' is missing"))?;
    let options = serde_json::from_value(Value::Object(options));
    let options = options.map_err(|error| Failure::new(error.to_string()))?;
    let creds = TlsCreds::load(session.graph.executor(), &options).await?;
    Ok(creds.register(&session.graph, id)?)
}

/// Nothing here is encrypted, so a secret is never asked for: command lines that have one work all the
/// same, and a wrong one is told now.
fn check_secret(text: &str) -> Result<()> {
    let refuse = |text: &str| Err(Failure::new(text));
    let members: BTreeMap<String, String> = keyval::pairs(text).into_iter().collect();
    let get = |key: &str| members.get(key).map(String::as_str);
    if let Some(key) = members.keys().find(|key| !SECRET.contains(&key.as_str())) {
        return refuse(&format!("Invalid parameter '{key}'"));
    }
    if get("id").is_none() {
        return refuse("Parameter 'id' is missing");
    }
    if !matches!(get("format"), None | Some("raw" | "base64")) {
        return refuse("Parameter 'format' does not accept value");
    }
    match (get("data"), get("file")) {
        (Some(_), Some(_)) => refuse("'file' and 'data' are mutually exclusive"),
        (None, None) => refuse("Must provide 'file' or 'data'"),
        (Some(_), None) => Ok(()),
        (None, Some(path)) => match std::fs::metadata(path) {
            Ok(_) => Ok(()),
            Err(error) => refuse(&format!("Failed to open file '{path}': {error}")),
        },
    }
}
