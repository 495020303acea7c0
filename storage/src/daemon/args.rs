//! The command line of `ferry storage`, with the spellings of `qemu-storage-daemon`.

use std::path::PathBuf;

use ferry_api::QmpError;
use ferry_api::command::{
    BlockExportOptions, BlockdevOptions, NbdServerOptions, ObjectOptions, qmp_label,
};
use ferry_block::keyval::split;

use super::chardev::{Backend, Chardev};
use super::keyval;
use crate::error::{Error, ErrorKind, Result};

/// Serve disks without a guest: nodes, jobs and exports, controlled by QMP
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = "\
Options are JSON, or key=value,... with dots for members of members. They take effect in this order:
--object, --blockdev, --nbd-server, --export, then QMP clients may connect.")]
pub struct StorageArgs {
    /// Add an object: tls-creds-x509,id=ID,dir=DIR,endpoint=server|client[,verify-peer=on|off] or
    /// throttle-group,id=ID[,limits.bps-total=N...]
    #[arg(long, value_name = "OPTIONS")]
    pub object: Vec<String>,
    /// Open a node, as QMP's blockdev-add: driver=qcow2,node-name=ID,file.driver=file,file.filename=FILE
    #[arg(long, value_name = "OPTIONS")]
    pub blockdev: Vec<String>,
    /// Listen for NBD clients: addr.type=unix,addr.path=SOCKET or
    /// addr.type=inet,addr.host=HOST,addr.port=PORT, and if wanted tls-creds=ID, max-connections=N
    #[arg(long, value_name = "OPTIONS")]
    pub nbd_server: Option<String>,
    /// Export a node: nbd,id=ID,node-name=NODE, and if wanted name=NAME, writable=on, bitmaps.0=NAME; or
    /// to a guest of another monitor: vhost-user-blk,id=ID,node-name=NODE,addr.type=unix,addr.path=SOCKET,
    /// and if wanted writable=on, num-queues=N, logical-block-size=BYTES
    #[arg(long, value_name = "OPTIONS")]
    pub export: Vec<String>,
    /// Listen for QMP clients on this socket: unix:PATH or PATH
    #[arg(long, value_name = "SOCKET")]
    pub qmp: Vec<String>,
    /// A place for --monitor: socket,id=ID,path=PATH,server=on,wait=off to listen, without server=on to
    /// connect there, or stdio,id=ID
    #[arg(long, value_name = "OPTIONS")]
    pub chardev: Vec<String>,
    /// Serve QMP clients at the place of a --chardev: chardev=ID
    #[arg(long, value_name = "OPTIONS")]
    pub monitor: Vec<String>,
    /// Go to the background once everything is set up
    #[arg(long)]
    pub daemonize: bool,
    /// Write the process's number to this file, and remove it in the end
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
}

/// The command line, read and checked.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) objects: Vec<ObjectOptions>,
    pub(super) nodes: Vec<BlockdevOptions>,
    pub(super) nbd_server: Option<NbdServerOptions>,
    pub(super) exports: Vec<BlockExportOptions>,
    pub(super) monitors: Vec<Chardev>,
    pub(super) daemonize: bool,
    pub(super) pidfile: Option<PathBuf>,
}

impl TryFrom<StorageArgs> for Plan {
    type Error = Error;

    fn try_from(args: StorageArgs) -> Result<Plan> {
        let chardevs = read(&args.chardev, "--chardev", Chardev::parse)?;
        let sockets = read(&args.qmp, "--qmp", qmp)?.into_iter().enumerate();
        let chardev =
            |(index, path)| Chardev { id: qmp_label(index), backend: Backend::Listen(path) };
        let mut monitors: Vec<_> = sockets.map(chardev).collect();
        monitors.extend(read(&args.monitor, "--monitor", |text| monitor(text, &chardevs))?);
        check_stdio(&monitors, args.daemonize)?;
        let nbd_server = args.nbd_server.as_slice();
        Ok(Plan {
            objects: read(&args.object, "--object", |text| keyval::parse(text, "qom-type"))?,
            nodes: read(&args.blockdev, "--blockdev", |text| keyval::parse(text, "driver"))?,
            nbd_server: read(nbd_server, "--nbd-server", |text| keyval::parse(text, "addr"))?.pop(),
            exports: read(&args.export, "--export", |text| keyval::parse(text, "type"))?,
            monitors,
            daemonize: args.daemonize,
            pidfile: args.pidfile,
        })
    }
}

/// Reads every use of one option; the error says which option and what it was given.
fn read<T>(
    texts: &[String],
    option: &str,
    parse: impl Fn(&str) -> std::result::Result<T, QmpError>,
) -> Result<Vec<T>> {
    let parse = |text: &String| {
        parse(text)
            .map_err(|error| Error::new(ErrorKind::Usage, format!("{option} {text}: {error}")))
    };
    texts.iter().map(parse).collect()
}

fn qmp(text: &str) -> std::result::Result<PathBuf, QmpError> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    let path = path.split(',').next().unwrap_or_default();
    if path.is_empty() || text.starts_with("tcp:") {
        return Err(QmpError::generic("give unix:PATH"));
    }
    Ok(path.into())
}

/// There is one standard input, and it is gone in the background.
fn check_stdio(monitors: &[Chardev], daemonize: bool) -> Result<()> {
    let users = monitors.iter().filter(|chardev| chardev.backend == Backend::Stdio).count();
    let refused = match users {
        0 => return Ok(()),
        _ if daemonize => "cannot use stdio with --daemonize",
        1 => return Ok(()),
        _ => "cannot use stdio by multiple character devices",
    };
    Err(Error::new(ErrorKind::Usage, format!("--chardev: {refused}")))
}

fn monitor(text: &str, chardevs: &[Chardev]) -> std::result::Result<Chardev, QmpError> {
    let mut chosen = None;
    for (index, part) in split(text).into_iter().enumerate() {
        let pair = part.split_once('=');
        let pair = pair.or((index == 0).then_some(("chardev", part.as_str())));
        match pair {
            Some(("chardev", id)) => {
                let found = chardevs.iter().find(|chardev| chardev.id == id);
                let found = found
                    .ok_or_else(|| QmpError::generic(format!("chardev \"{id}\" not found")))?;
                chosen = Some(found.clone());
            }
            Some(("mode", "control") | ("pretty", "off" | "no" | "false")) => {}
            _ => return Err(QmpError::generic(format!("'{part}' is not supported"))),
        }
    }
    chosen.ok_or_else(|| QmpError::missing_argument("chardev"))
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
