//! `--object`: TLS credentials for NBD servers.

use clap::Args;
use ferry_block::net::TlsCreds;
use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::keyval;
use crate::session::Session;

/// Objects that options refer to by id.
#[derive(Debug, Default, Args)]
pub(crate) struct Objects {
    /// TLS credentials: tls-creds-x509,id=ID,dir=FOLDER
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
    if kind.trim_start_matches("qom-type=") != "tls-creds-x509" {
        return Err(Failure::new(format!("invalid object type: {kind}")));
    }
    let Value::Object(mut options) = keyval::object(rest)? else {
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
