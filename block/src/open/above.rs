//! The images above one that is being opened: none of them may be named again below.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::rc::Rc;

use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;

/// The files of the images above, the nearest first.
#[derive(Clone, Default)]
pub(super) struct Above(Option<Rc<Layer>>);

struct Layer {
    file: FileId,
    path: String,
    above: Above,
}

/// Which file it is, however its path is spelt: by symbolic or hard links, say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FileId {
    /// A device file's own device.
    Device(u64),
    /// The device and the inode.
    Inode(u64, u64),
}

impl FileId {
    /// `None` if there is no such file.
    async fn of(executor: &Executor, path: &str) -> Option<FileId> {
        let owned = path.to_owned();
        let metadata = executor.engine().blocking(move || fs::metadata(owned)).await.ok()?;
        Some(match metadata.file_type().is_block_device() {
            true => FileId::Device(metadata.rdev()),
            false => FileId::Inode(metadata.dev(), metadata.ino()),
        })
    }
}

impl Above {
    /// These images and the one in the file at `path`.
    pub(super) async fn and(&self, executor: &Executor, path: Option<String>) -> Above {
        let Some(path) = path else { return self.clone() };
        match FileId::of(executor, &path).await {
            Some(file) => Above(Some(Rc::new(Layer { file, path, above: self.clone() }))),
            None => self.clone(),
        }
    }

    /// Refuses the file of an image above.
    pub(super) async fn refuse(&self, executor: &Executor, path: &str) -> Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        let Some(file) = FileId::of(executor, path).await else { return Ok(()) };
        let mut names = vec![path];
        let mut next = &self.0;
        while let Some(layer) = next {
            names.push(&layer.path);
            if layer.file == file {
                names.reverse();
                let text = format!("the backing files form a loop: '{}'", names.join("' -> '"));
                return Err(Error::new(ErrorKind::InvalidArgument, text));
            }
            next = &layer.above.0;
        }
        Ok(())
    }
}
