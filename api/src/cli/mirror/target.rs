//! The file that a mirror writes to: made, opened as a node, and tidied up when nothing came of it.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    cli::{CliError, ImageFormat, MirrorArgs, Result},
    client::QmpClient,
    command::{
        BlockDeviceInfo, BlockInfo, BlockdevDel, BlockdevDriver, BlockdevOptions, BlockdevRef,
        CacheOptions, FileOptions, RawOptions,
    },
    schema::Empty,
};

/// A node over the target file.
pub(super) struct Target {
    path: PathBuf,
    node: String,
    created: bool,
}

impl Target {
    /// Makes or checks the file and opens it in the guest's process.
    pub(super) fn open(
        args: &MirrorArgs,
        disk: &BlockInfo,
        client: &mut QmpClient,
    ) -> Result<Target> {
        let Some(inserted) = &disk.inserted else {
            return Err(CliError::Failed(format!("disk '{}' has no medium to copy", args.device)));
        };
        let size = u64::try_from(inserted.image.virtual_size).unwrap_or(0);
        if args.create {
            create(&args.target, size)?;
        }
        // The guest's process has its own working directory.
        let path = fs::canonicalize(&args.target).map_err(|source| CliError::File {
            action: "use the target",
            path: args.target.clone(),
            source,
            hint: "; --create makes a new one of the right size",
        })?;
        let mut target = Target { path, node: String::new(), created: args.create };
        let opened = target.add_node(args, size, client);
        if opened.is_err() {
            target.remove_file();
        }
        opened.map(|()| target)
    }

    /// The node's name.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// The file's absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the file in the guest's process and says whether that was possible. Not worth failing
    /// for: it closes with the process.
    pub(super) fn close(&self, client: &mut QmpClient) -> bool {
        let node_name = self.node.clone();
        let closed = client.call::<_, Empty>("blockdev-del", &BlockdevDel { node_name });
        if let Err(error) = &closed {
            tracing::warn!(%error, node = self.node, "the target stays open");
        }
        closed.is_ok()
    }

    /// Closes the file and removes it if it was made for this. A file that somebody may still use is
    /// never removed: it could be the guest's disk.
    pub(super) fn abandon(&self, client: &mut QmpClient) {
        if self.close(client) {
            self.remove_file();
        }
    }

    fn remove_file(&self) {
        if self.created
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the target file stays");
        }
    }

    fn add_node(&mut self, args: &MirrorArgs, size: u64, client: &mut QmpClient) -> Result<()> {
        let metadata = fs::metadata(&self.path).map_err(|source| CliError::File {
            action: "look at",
            path: self.path.clone(),
            source,
            hint: "",
        })?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && metadata.len() != size {
            return Err(CliError::Failed(format!(
                "{} has {} bytes but disk '{}' has {size}; `truncate -s {size}` it, or name a new file \
                 and give --create",
                self.path.display(),
                metadata.len(),
                args.device
            )));
        }
        let Some(filename) = self.path.to_str().map(str::to_owned) else {
            let path = self.path.display();
            return Err(CliError::Failed(format!("the path {path} is not UTF-8; rename it")));
        };
        let file = FileOptions { filename, locking: None, aio: None, aio_max_batch: None };
        loop {
            self.node = free_name(client)?;
            let options = node_options(args, &self.node, file.clone(), is_device);
            let added = client.call::<_, Empty>("blockdev-add", &options);
            let Err(refused) = added else { return Ok(()) };
            // Somebody else may have been quicker to take the same name, and has not taken the next one.
            if !node_names(client)?.contains(&self.node) {
                return Err(refused.into());
            }
        }
    }
}

fn node_options(
    args: &MirrorArgs,
    name: &str,
    file: FileOptions,
    is_device: bool,
) -> BlockdevOptions {
    let cache = args.direct.then_some(CacheOptions { direct: Some(true), no_flush: None });
    let plain = |node_name, driver| BlockdevOptions {
        node_name,
        discard: None,
        cache: cache.clone(),
        read_only: None,
        auto_read_only: None,
        force_share: None,
        detect_zeroes: None,
        active: None,
        driver,
    };
    let protocol =
        if is_device { BlockdevDriver::HostDevice(file) } else { BlockdevDriver::File(file) };
    let below = BlockdevRef::Definition(Box::new(plain(None, protocol)));
    let driver = match args.format {
        ImageFormat::Raw => {
            BlockdevDriver::Raw(RawOptions { file: below, offset: None, size: None })
        }
    };
    plain(Some(name.to_owned()), driver)
}

/// A node name that nobody uses.
fn free_name(client: &mut QmpClient) -> Result<String> {
    let used = node_names(client)?;
    let mut names = (0_u64..).map(|n| format!("mirror-target-{n}"));
    names
        .find(|name| !used.contains(name))
        .ok_or_else(|| CliError::Failed("every node name for a target is taken".to_owned()))
}

/// The names of all nodes.
fn node_names(client: &mut QmpClient) -> Result<HashSet<String>> {
    let nodes: Vec<BlockDeviceInfo> =
        client.call("query-named-block-nodes", &json!({ "flat": true }))?;
    Ok(nodes.into_iter().filter_map(|node| node.node_name).collect())
}

fn create(path: &Path, size: u64) -> Result<()> {
    let failed = |hint| {
        move |source| CliError::File { action: "create", path: path.to_path_buf(), source, hint }
    };
    let hint = "; if the file is there, leave out --create to overwrite it, or name another one";
    let file: File =
        OpenOptions::new().write(true).create_new(true).open(path).map_err(failed(hint))?;
    file.set_len(size).map_err(failed("; is there a file system that takes a file of this size?"))
}
