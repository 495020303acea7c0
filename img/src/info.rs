//! `info`: what an image is.

use clap::Args;
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::naming::Reading;
use crate::output::{Output, print, print_json};
use crate::qcow2;
use crate::session::{Request, Session, disk_size};
use crate::size;

/// Deepest chain that is followed.
const MAX_CHAIN: usize = 200;

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Reading,
    /// For people or for programs
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// The images below it, too
    #[arg(long)]
    backing_chain: bool,
    /// The image
    filename: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    Session::run(arguments.image.objects(), async |session| {
        let chain = chain(session, arguments).await?;
        match (arguments.output, arguments.backing_chain) {
            (Output::Json, true) => print_json(&Value::Array(chain))?,
            (Output::Json, false) => {
                print_json(chain.first().unwrap_or(&Value::Null))?;
            }
            (Output::Human, _) => {
                let texts: Vec<String> = chain.iter().map(human).collect();
                print(texts.join("\n\n"))?;
            }
        }
        Ok(0)
    })
}

/// The image, and those below it if they are asked for.
async fn chain(session: &Session, arguments: &Arguments) -> Result<Vec<Value>> {
    let first = Request { alone: true, ..arguments.image.request(&arguments.filename, None) };
    let mut name = arguments.filename.clone();
    let mut format = None;
    let mut chain = Vec::new();
    loop {
        let request = match chain.is_empty() {
            true => first.clone(),
            false => {
                let format: Option<&str> = format.as_deref();
                Request { name: &name, format, image_opts: false, ..first }
            }
        };
        let info = describe(session, &request).await?;
        let below = info.get("full-backing-filename").and_then(Value::as_str).map(str::to_owned);
        format = info.get("backing-filename-format").and_then(Value::as_str).map(str::to_owned);
        chain.push(Value::Object(info));
        match below {
            Some(below) if arguments.backing_chain && chain.len() < MAX_CHAIN => name = below,
            Some(_) if arguments.backing_chain => {
                return Err(Failure::new(format!(
                    "Backing file '{name}' creates an infinite loop."
                )));
            }
            _ => return Ok(chain),
        }
    }
}

/// QMP's `ImageInfo`.
async fn describe(session: &Session, request: &Request<'_>) -> Result<Map<String, Value>> {
    let (format, file) = session.open_container(request).await?;
    let mut info = Map::new();
    let name = file.node.filename().unwrap_or(file.name.clone());
    info.insert("filename".into(), name.clone().into());
    info.insert("format".into(), format.clone().into());
    info.insert("virtual-size".into(), file.len().into());
    info.insert("dirty-flag".into(), false.into());
    if let Some(bytes) = disk_size(&file.node) {
        info.insert("actual-size".into(), bytes.into());
    }
    match format.as_str() {
        "raw" | "file" | "host_device" | "nbd" => {}
        "qcow2" => {
            let described = qcow2::describe(&mut info, file.root.edge(), &name).await;
            let context = format!("Could not open '{}'", request.name);
            described.map_err(|failure| failure.context(context))?;
        }
        other => return Err(Failure::new(format!("Unknown driver '{other}'"))),
    }
    session.forget(file);
    Ok(info)
}

fn human(info: &Value) -> String {
    let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default();
    let number = |key: &str| info.get(key).and_then(Value::as_u64);
    let bytes = number("virtual-size").unwrap_or(0);
    let disk = number("actual-size").map_or_else(|| "unavailable".to_owned(), size::human);
    let mut lines = vec![
        format!("image: {}", text("filename")),
        format!("file format: {}", text("format")),
        format!("virtual size: {} ({bytes} bytes)", size::human(bytes)),
        format!("disk size: {disk}"),
    ];
    if let Some(cluster) = number("cluster-size") {
        lines.push(format!("cluster_size: {cluster}"));
    }
    if info["dirty-flag"] == true {
        lines.push("cleanly shut down: no".to_owned());
    }
    lines.extend(qcow2::human(info));
    lines.join("\n")
}
